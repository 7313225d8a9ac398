def q_sample(x_0, eps, alpha_bar_t):
    a = alpha_bar_t.view(-1, *[1] * (x_0.ndim - 1))
    return a**0.5 * x_0 + (1 - a) ** 0.5 * eps
