def target(prediction_type, x_0, eps, alpha_bar_t):
    a = alpha_bar_t.view(-1, *[1] * (x_0.ndim - 1))
    return {"epsilon": eps, "sample": x_0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x_0}[prediction_type]
