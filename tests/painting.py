"""What the tests of generation share: ControlNets whose control counts, and diffusers called by hand."""

import functools

import diffusers
import numpy as np
import torch
from PIL import Image

from annotators.canny import Canny
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet, save_controlnet

edges_of = Canny()

# What somebody reads in diffusers' documentation: with a picture, under ControlNets -> SD, SDXL.
OWN = {
    (False, False): (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline),
    (False, True): (diffusers.StableDiffusionControlNetPipeline, diffusers.StableDiffusionXLControlNetPipeline),
    (True, False): (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionXLImg2ImgPipeline),
    (True, True): (
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
    ),
}


def strong_net(base_name, folder, seed=0, condition="canny"):
    """A ControlNet whose zero convolutions are not zero, so that the control counts; of a list of types one for all."""
    base = find_base(base_name)
    net = make_controlnet(
        base.load("unet"),
        vae_factor=base.vae_factor,
        latent_channels=base.latent_channels,
        seed=seed,
        types=len(condition) if isinstance(condition, list) else 1,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_controlnet(net, folder, {"condition": condition} if condition else {})
    return folder


def pixels(path):
    return np.asarray(Image.open(path))


def picture_of(path):
    return Image.open(path).convert("RGB")


def own_pipeline(base_name, net_folders=(), *, picture=False, scheduler=None, options=None):
    """diffusers' pipeline, loaded as its documentation says; a call changes nothing of it but its scheduler."""
    pipeline, scheduler_config = _loaded(base_name, tuple(net_folders), picture)
    options = {"use_karras_sigmas": True} if options is None else options
    kind = scheduler or diffusers.DPMSolverMultistepScheduler
    pipeline.scheduler = kind.from_config(scheduler_config, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.lru_cache(maxsize=16)
def _loaded(base_name, net_folders, picture):
    base = find_base(base_name)
    extra = {} if base.is_xl else {"safety_checker": None}
    if net_folders:
        nets = [diffusers.ControlNetModel.from_pretrained(folder) for folder in net_folders]
        extra["controlnet"] = nets[0] if len(nets) == 1 else nets
    pipeline = OWN[picture, bool(net_folders)][base.is_xl].from_pretrained(base.folder, **extra)
    return pipeline, pipeline.scheduler.config


def reference(base_name, net_folders=(), maps=(), *, picture=None, scheduler=None, options=None, **arguments):
    """What somebody gets who calls diffusers' pipeline himself."""
    pipeline = own_pipeline(base_name, net_folders, picture=picture is not None, scheduler=scheduler, options=options)
    images = [picture_of(path) for path in maps]
    if maps:
        arguments["image" if picture is None else "control_image"] = images[0] if len(images) == 1 else images
    if picture is not None:
        arguments["image"] = picture_of(picture)
    return np.asarray(pipeline(**{"num_inference_steps": 3, **arguments}).images[0])
