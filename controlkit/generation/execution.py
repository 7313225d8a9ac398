"""How a request is computed: what lies where, and what is computed in parts. What is painted, the request says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.generation.pipelines import nets_of, unet_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from controlkit.generation.preview_vae import PreviewVae
    from controlkit.generation.previews import Previews
    from controlkit.models.bases import Base

OFFLOADS = ("model", "sequential")

# From here on the decoder's largest tensor, 256 channels at full size, takes 2 GB in float32; it holds several.
TILED_FROM_PIXELS = 2048 * 1024


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`vae_tiling` None: in tiles where the picture is large. `offload` "model": each network is on the GPU while it
    computes; "sequential": each layer, which takes the least memory and by far the most time. `compile` is a backend of
    torch.compile, None: nothing is compiled. A preview is taken every `previews` steps, 0: none; `preview_vae` decodes
    it in the place of the base's VAE."""

    vae_tiling: bool | None = None
    offload: str | None = None
    compile: str | None = None
    previews: int = 0
    preview_vae: Path | None = None

    def check(self, device: torch.device, steps: int) -> None:
        """Refuse what this device, or a picture of so many steps, does not have."""
        if self.previews < 0 or 0 < steps <= self.previews:
            raise RequestError(
                f"--previews {self.previews}: expected 1 to {steps - 1}, so that one falls before the last of {steps} "
                f"steps, which is the picture; 0 is none"
            )
        if self.preview_vae and not self.previews:
            raise RequestError(
                "--preview-vae decodes previews, and none are asked for; add --previews N, or leave it out"
            )
        if self.offload is not None and self.offload not in OFFLOADS:
            raise RequestError(f"--offload {self.offload}: expected {' or '.join(OFFLOADS)}")
        if self.offload and device.type == "cpu":
            raise RequestError(
                f"--offload {self.offload} keeps networks off the GPU while they wait, and here they compute on the "
                f"CPU; leave it out, or choose a --device with memory of its own"
            )
        if self.offload and self.compile:
            raise RequestError("--compile is for networks that stay on the GPU; leave out --offload, or --compile")

    def home(self, device: torch.device) -> torch.device | str:
        """Where the networks lie once they are loaded."""
        return "cpu" if self.offload else device

    def tiles(self, size: tuple[int, int], say: Callable[[str], None]) -> bool:
        """Whether the VAE works in tiles; said where nobody asked for it, since it changes the pixels a little. It
        does not depend on how much memory is free: the same request paints the same picture everywhere."""
        if self.vae_tiling is not None:
            return self.vae_tiling
        large = size[0] * size[1] >= TILED_FROM_PIXELS
        if large:
            say(f"{size[0]}x{size[1]} is decoded in tiles, to save memory; --no-vae-tiling decodes it whole")
        return large

    def apply(self, pipeline: Any, device: torch.device, *, say: Callable[[str], None]) -> None:
        """Set up a pipeline whose networks are at `home` and whose ControlNets are silenced."""
        if self.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif self.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        if self.compile:
            say("UNet and ControlNet are compiled at the first step, which takes minutes; later steps are faster")
            unet_of(pipeline).compile(backend=self.compile)
            for net in nets_of(pipeline):
                net.compile(backend=self.compile)

    def find_preview_vae(self, base: Base) -> PreviewVae | None:
        """What decodes the previews, checked, where it is not the base's own VAE."""
        from controlkit.generation.preview_vae import find_preview_vae

        return find_preview_vae(self.preview_vae, base) if self.preview_vae else None

    def watch(self, pipeline: Any, steps: int, vae: PreviewVae | None, device: torch.device) -> Previews | None:
        """What takes the previews of this pipeline, if any are asked for."""
        if not 0 < self.previews < steps:  # a second pass may be shorter than what lies between two of them
            return None
        from controlkit.generation.previews import Previews

        decoder = vae.load(pipeline.vae.dtype, device) if vae else None
        return Previews(pipeline, every=self.previews, steps=steps, decoder=decoder)


def set_tiling(vae: Any, tiled: bool) -> None:
    """Whether a VAE works in tiles from now on; what it did for a picture of another size does not count."""
    if tiled:
        vae.enable_tiling()  # tiles as large as the pictures that it was trained on, a quarter of overlap
        vae.enable_slicing()  # and of several pictures one at a time
    else:
        vae.disable_tiling()
        vae.disable_slicing()
