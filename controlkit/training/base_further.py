"""A base that is there learns further: from more pictures, or to inpaint.

What an inpainting base reads, in this order: the noised latent, the mask on the latent grid (1 where it is to paint),
the latent of the picture with the hole in grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from controlkit.data.fresh_maps import DRAWN_MASKS, FreshMaps
from controlkit.data.rows import load_pictures
from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.generation.unguided import paint_prompts
from controlkit.models.inpaint_hint import INPAINT
from controlkit.training.base_tasks import Diffusion, encode_all, prompt_sheet, prompts_of, save_pipeline
from controlkit.training.draws import uniform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.models.bases import Base
    from controlkit.training.base_config import BaseConfig
    from controlkit.training.base_tasks import Keys, Sheet

HOLE = 127
"""The grey of a hole; 0 in [-1, 1], as diffusers' pipelines hide it."""


def check_base(config: BaseConfig, base: Base) -> None:
    """Refuse what cannot go on; reads configs alone."""
    if base.is_xl:
        raise RequestError(f"base={config.base} is {base.family}; expected a Stable Diffusion 1.x or 2.x")
    if base.inpaints and not config.inpaint:
        raise RequestError(f"base={config.base} is an inpainting base; train it with inpaint=true")
    whole = base.vae_factor * 2 ** (len(base.unet["block_out_channels"]) - 1)
    if config.data.size % whole:
        raise RequestError(f"data.size={config.data.size} is not a multiple of {whole}, the VAE's and UNet's together")


def make_further(
    config: BaseConfig, base: Base, rows: list[Row], shown: list[Row], device: torch.device
) -> Further | Inpainting:
    """The task that the config asks for, of this base."""
    pictures = load_pictures(rows, config.data.size)
    return (Inpainting if config.inpaint else Further)(config, base, rows, pictures, shown, device)


def widen(unet: Any, channels: int) -> None:
    """Give a UNet's first layer more input channels, as many in all. The new ones weigh nothing: until it learns, the
    UNet answers as it did, whatever they hold."""
    narrow = unet.conv_in
    wide = torch.nn.Conv2d(channels, narrow.out_channels, narrow.kernel_size, narrow.stride, narrow.padding)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : narrow.in_channels] = narrow.weight
    wide.bias = narrow.bias
    unet.conv_in = wide.to(narrow.weight)
    unet.register_to_config(in_channels=channels)


class Further(Diffusion):
    """A Stable Diffusion whose UNet goes on learning. Its texts and latents stay what they are."""

    kind = "StableDiffusionPipeline"

    def __init__(
        self,
        config: BaseConfig,
        base: Base,
        rows: list[Row],
        pictures: NDArray[np.uint8],
        shown: list[Row],
        device: torch.device,
    ) -> None:
        super().__init__(config, rows, pictures, shown, base.load("scheduler"))
        self.unet = base.load("unet", torch_dtype=torch.float32)
        self.prompts = prompts_of(config, rows)
        locked = {name: base.load(name, torch_dtype=torch.float32) for name in ("vae", "text_encoder")}
        self._locked = {name: net.to(device).requires_grad_(False).eval() for name, net in locked.items()}
        self._tokenizer = base.load("tokenizer")
        self._reader = self._pipeline({"unet": self.unet})
        self.mean, self.std = encode_all(self, self.vae, device)

    @property
    def vae(self) -> Any:
        return self._locked["vae"]

    def networks(self) -> dict[str, Any]:
        return {"unet": self.unet}

    def forward(self, keys: Keys, device: torch.device) -> torch.Tensor:
        numbers = [number for _, number in keys]
        noise = self.draw(keys, "vae", tuple(self.mean.shape[1:]))
        x_0 = (self.mean[numbers] + self.std[numbers] * noise).to(device)
        eps = self.draw(keys, "noise", tuple(x_0.shape[1:])).to(device)
        t = self.timesteps(keys).to(device)
        x_t = q_sample(x_0, eps, self.schedule.alpha_bar[t.cpu()])
        emptied = self.emptied(keys).tolist()
        prompts = ["" if empty else self.prompts[number] for number, empty in zip(numbers, emptied, strict=True)]
        with torch.no_grad():
            text, _ = self._reader.encode_prompt(prompts, device, 1, False)
            beside = self.beside(keys, device)
        output = self.unet(torch.cat([x_t, *beside], dim=1), t, encoder_hidden_states=text).sample
        return self.loss(output, x_0, eps, t)

    def beside(self, keys: Keys, device: torch.device) -> list[torch.Tensor]:
        """What the UNet reads beside the latents."""
        return []

    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        return prompt_sheet(self, paint_prompts, self._pipeline(networks), self.config.samples.cfg)

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        save_pipeline(self._pipeline(networks), folder, self.config)

    def _pipeline(self, networks: Mapping[str, Any]) -> Any:
        import diffusers

        pipeline = getattr(diffusers, self.kind)(
            **self._locked,
            tokenizer=self._tokenizer,
            unet=networks["unet"],
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class Inpainting(Further):
    """The same for a UNet that reads the mask and the masked picture too; one that does not yet is widened."""

    kind = "StableDiffusionInpaintPipeline"

    def __init__(
        self,
        config: BaseConfig,
        base: Base,
        rows: list[Row],
        pictures: NDArray[np.uint8],
        shown: list[Row],
        device: torch.device,
    ) -> None:
        super().__init__(config, base, rows, pictures, shown, device)
        self.masks = FreshMaps.of(INPAINT, DRAWN_MASKS)
        if not base.inpaints:
            widen(self.unet, 2 * base.latent_channels + 1)

    def beside(self, keys: Keys, device: torch.device) -> list[torch.Tensor]:
        drawn = [self.mask(self.pictures[key[1]].numpy(), *self._key(key)) for key in keys]
        masks = (torch.from_numpy(np.stack(drawn))[:, None] > HOLE).float().to(device)
        posterior = self.vae.encode(self.pixels(keys, device) * (1 - masks)).latent_dist
        noise = self.draw(keys, "masked", tuple(posterior.mean.shape[1:])).to(device)
        hidden = (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor
        # A cell is to be painted if any of its pixels is, so that no stroke is lost.
        return [max_pool2d(masks, masks.shape[-1] // hidden.shape[-1]), hidden]

    def mask(self, picture: NDArray[np.uint8], *key: object) -> NDArray[np.uint8]:
        """(S, S), 255 where the picture is to be painted."""
        return self.masks.make(picture, lambda name: uniform(*key, "mask", name))[:, :, 0]

    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        """Pictures that it has not seen, with holes, and below them what it makes of these."""
        from PIL import Image

        samples, pipeline = self.config.samples, self._pipeline(networks)
        pipeline.scheduler = make_sampler(samples.sampler, self.scheduler.config, steps=samples.steps)
        originals = list(load_pictures(self.shown, self.config.data.size))
        holes, made = [], []
        for number, (picture, prompt) in enumerate(zip(originals, prompts_of(self.config, self.shown), strict=True)):
            mask = self.mask(picture, self.config.seed, "sheet", number)
            holes.append(np.where(mask[:, :, None] > HOLE, HOLE, picture).astype(np.uint8))
            painted = pipeline(
                prompt,
                image=Image.fromarray(picture),
                mask_image=Image.fromarray(mask),
                height=picture.shape[0],
                width=picture.shape[1],
                num_inference_steps=samples.steps,
                guidance_scale=samples.cfg,
                generator=torch.Generator().manual_seed(self.config.seed + number),
                output_type="np",
            ).images[0]
            made.append((painted * 255).round().astype(np.uint8))
        return [originals, holes, made]
