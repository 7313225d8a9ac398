"""What the PNG of a picture says of it: every field of its request, with the hashes of all files that it names."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controlkit.files import sha256
from controlkit.generation.execution import Execution
from controlkit.generation.settings import library_versions, weights_sha256

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from controlkit.generation.batches import Batch
    from controlkit.generation.plan import FittedPicture, Plan
    from controlkit.generation.request import Control
    from controlkit.models.formats.reading import WeightedFile


def record(
    plan: Plan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """The settings of a plan's pictures, but for the seed that each has of its own. The size is the first pass's."""
    request = plan.request
    image = None
    if plan.start:
        image = {
            "file": str(request.image),
            "sha256": plan.start.file_sha256,
            "pixels_sha256": picture_sha256(plan.start.pixels),
            "strength": request.noise_share,
        }
    if plan.canvas and request.image:
        image = {
            "file": str(request.image),
            "sha256": sha256(request.image),
            "pixels_sha256": picture_sha256(plan.canvas.picture),
            "strength": request.noise_share,
        }
    mask = None
    if request.mask:
        file = request.mask.file
        mask = {
            **asdict(request.mask),
            "file": str(file) if file else None,
            "sha256": sha256(file) if file else None,
            "outpaint": [*request.mask.outpaint],
            "window": [*request.mask.window],
        }
    return {
        "prompt": request.prompt,
        "negative": request.negative,
        "plain_prompt": request.plain_prompt,
        "base": {
            "name": request.base,
            "sha256": weights_sha256(plan.base.folder),
            "prediction": plan.base.prediction_type,
            "tokenizer": request.tokenizer,
        },
        "loras": [_weighted_file(lora) for lora in request.loras],
        "hypernetworks": [_weighted_file(hypernetwork) for hypernetwork in request.hypernetworks],
        "embeddings": [{"file": str(file), "sha256": weights_sha256(file.expanduser())} for file in request.embeddings],
        "vae": {"name": request.vae, "sha256": weights_sha256(plan.vae.path)} if plan.vae else None,
        "controls": [
            {
                **asdict(control_map.control),
                "file": str(control_map.control.file),
                "mask": _region(control_map.control, region),
                "type": control_map.type,
                "sha256": control_map.file_sha256,
                "pixels_sha256": picture_sha256(fitted),
                "keypoints": _keypoints(control_map.keypoints),
                "controlnet": {
                    "name": plan.controlnets[reader].name,
                    "sha256": weights_sha256(plan.controlnets[reader].folder),
                    "number": reader,
                },
            }
            for control_map, fitted, region, reader in zip(
                plan.maps, plan.fitted, plan.regions, plan.readers, strict=True
            )
        ],
        "inpaint_controlnet": (
            {"name": plan.filler.name, "sha256": weights_sha256(plan.filler.folder)} if plan.filler else None
        ),
        "annotate": request.annotate,
        "control_half": request.control_half,
        "control_every": request.control_every,
        "resize": request.resize,
        "image": image,
        "mask": mask,
        "hires": _second_pass(plan, execution),
        "upscale": asdict(request.upscale) if request.upscale else None,
        "sampler": request.sampler,
        "steps": request.steps,
        "eta": request.eta,
        "cfg": request.cfg,
        "cfg_interval": [*request.cfg_interval],
        "cfg_rescale": request.cfg_rescale,
        "clip_skip": request.clip_skip,
        "width": plan.size[0],
        "height": plan.size[1],
        "vae_tiling": execution.tiles(plan.size, lambda text: None),
        "compile": execution.compile,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": library_versions(),
    }


class Recorder:
    """The settings of pictures, batch after batch; those of a plan are made once, since they hash its files."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype, execution: Execution) -> None:
        self.where: dict[str, Any] = {"device": device, "dtype": dtype, "execution": execution}
        self.plan: Plan | None = None
        self.settings: dict[str, Any] = {}

    def __call__(self, batch: Batch) -> list[dict[str, Any]]:
        """One for each of its pictures."""
        found = []
        for place, job in enumerate(batch.jobs):
            if job.plan is not self.plan:
                self.plan, self.settings = job.plan, record(job.plan, **self.where)
            found.append(self.settings | batch.record(place))
        return found


def _second_pass(plan: Plan, execution: Execution) -> dict[str, Any] | None:
    if plan.request.hires is None or plan.second is None:
        return None
    second = plan.second
    return {
        **asdict(plan.request.hires),
        "width": second.size[0],
        "height": second.size[1],
        "vae_tiling": execution.tiles(second.size, lambda text: None),
        "controls": [picture_sha256(fitted) for fitted in second.fitted],
        "control_masks": [picture_sha256(region.pixels) if region else None for region in second.regions],
    }


def _weighted_file(named: WeightedFile) -> dict[str, Any]:
    return {"file": str(named.file), "weight": named.weight, "sha256": weights_sha256(named.file.expanduser())}


def _keypoints(file: Path | None) -> dict[str, str] | None:
    return {"file": str(file), "sha256": sha256(file)} if file else None


def _region(control: Control, region: FittedPicture | None) -> dict[str, str] | None:
    if region is None:
        return None
    return {
        "file": str(control.mask),
        "sha256": region.file_sha256,
        "pixels_sha256": picture_sha256(region.pixels),
    }


def picture_sha256(pixels: NDArray[np.uint8]) -> str:
    """Of the pixels as they count: what a decoder, a resize or an annotator made of a file."""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def made_maps(plan: Plan) -> dict[str, bytes]:
    """The PNGs of the maps that --annotate made, each under the name it is kept by."""
    return {
        f"{control_map.type}{number + 1 if len(plan.maps) > 1 else ''}": control_map.made_png
        for number, control_map in enumerate(plan.maps)
        if control_map.made_png
    }
