"""The mathematics of diffusion, to be read beside the papers.

    schedules    beta_t, alpha_bar_t, SNR and sigma_t; Karras's sigmas; the schedule of any diffusers scheduler
    respacing    which t are visited when fewer steps are taken, and the schedule those steps make
    forward      q(x_t | x_{t-1}), q(x_t | x_0), q(x_t | x_s) and the posterior q(x_{t-1} | x_t, x_0)
    prediction   eps, x_0, score, v, flow and the mean: six ways of saying the same thing about x_t
    variance     of the reverse step: fixed small, fixed large, learned between the two
    losses       L1, L2, Huber, L_simple, L_vlb, the hybrid of the two, min-SNR weights
    guidance     classifier-free guidance, rescaled, on an interval of noise levels
    ddpm         the ancestral walk x_T -> x_0, on all steps or on some
    ddim         the deterministic walk, its noise eta, its inversion, and the arc between two latents
    samplers     diffusers' schedulers under stable names
    names        how an unknown name is answered

Nothing here knows the rest of the project, and importing this package imports nothing.
"""
