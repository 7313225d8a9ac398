from types import SimpleNamespace


def from_scheduler_config(config):
    from diffusers import DDPMScheduler

    return SimpleNamespace(alpha_bar=DDPMScheduler.from_config(config).alphas_cumprod.double())
