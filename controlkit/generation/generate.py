"""A request becomes pictures: everything is checked first, then diffusers' pipeline paints, one picture at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.generation.controls import choose_size, fit_map, read_map
from controlkit.generation.execution import Execution
from controlkit.generation.limits import refuse_what_cannot_be
from controlkit.generation.settings import library_versions, weights_sha256
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.models.formats.embeddings import add_embeddings, find_embeddings, rewrite, say_unused
from controlkit.models.formats.lora import apply_loras, plan_loras
from controlkit.models.formats.vae_file import find_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

    from controlkit.generation.request import Control, Request
    from controlkit.models.controlnets import ControlNet


@dataclass(frozen=True)
class Picture:
    """A picture and everything that decided it; `made_maps` are the PNGs of maps that --annotate made, `previews` those
    of what the network expected on the way."""

    image: NDArray[np.uint8]
    seed: int
    settings: dict[str, Any]
    made_maps: dict[str, bytes]
    previews: dict[str, bytes]


@refuse_what_cannot_be
def generate(
    request: Request,
    *,
    device: torch.device,
    dtype: torch.dtype,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Picture]:
    """The pictures of a request, each as soon as it is painted. `progress` counts steps over all of them."""
    # Everything that can be refused is refused before a weight is loaded.
    execution.check(device, request.steps)
    base = find_base(request.base, prediction=request.prediction, tokenizer=request.tokenizer)
    for guess in base.guesses:
        say(guess)
    found = [(find_controlnet(net.name), net.type) for net in request.controlnets]
    for controlnet, _ in found:
        controlnet.check_fits(base)
    paired = pair(request.controls, [(controlnet, type or controlnet.condition) for controlnet, type in found])
    controlnets = [controlnet for controlnet, _ in paired]
    maps = []
    for control, (controlnet, type) in zip(request.controls, paired, strict=True):
        control_map = read_map(control, type, annotate=request.annotate, say=say)
        if control_map.type and type and control_map.type != type:
            raise RequestError(
                f"--control {control.file} is a {control_map.type} map, ControlNet {controlnet.name!r} was trained on "
                f"{type}; choose a map or a ControlNet of the other's type"
            )
        maps.append(control_map)
    loras = plan_loras(base, request.loras, say)
    embeddings = find_embeddings(base, request.embeddings)
    say_unused(embeddings, (request.prompt, request.negative), say)
    vae = find_vae(request.vae, base) if request.vae else None
    scheduler = make_sampler(request.sampler, base.scheduler, steps=request.steps)
    size = choose_size(request.size, maps, base, say)
    tiled = execution.tiles(size, say)
    preview_vae = execution.find_preview_vae(base)
    fitted = [fit_map(control_map, size, say) for control_map in maps]

    import torch
    from PIL import Image

    from controlkit.generation.pipelines import control_pipeline, load_parts
    from controlkit.generation.silent import control_conditional_half, silenced

    home = execution.home(device)
    nets = [net.load(torch_dtype=dtype).to(home).eval() for net in controlnets]
    parts = load_parts(base, dtype=dtype, device=home, vae=vae)
    apply_loras(parts, loras)
    add_embeddings(parts, embeddings)
    pipeline = control_pipeline(base, parts, [silenced(nets)], scheduler)
    if request.control_half:
        control_conditional_half(pipeline)
    execution.apply(pipeline, device, tiled=tiled, say=say)
    previews = execution.watch(pipeline, request.steps, preview_vae, device)

    def of_each(values: list[float]) -> Any:
        """One ControlNet takes a number, several take a list."""
        return values[0] if len(values) == 1 else values

    images = [Image.fromarray(pixels) for pixels in fitted]
    arguments = {
        "prompt": rewrite(request.prompt, embeddings),
        "negative_prompt": rewrite(request.negative, embeddings) or None,
        "image": images[0] if len(images) == 1 else images,
        "width": size[0],
        "height": size[1],
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "controlnet_conditioning_scale": of_each([control.weight for control in request.controls]),
        "control_guidance_start": of_each([control.start for control in request.controls]),
        "control_guidance_end": of_each([control.end for control in request.controls]),
    }
    settings = {
        "prompt": request.prompt,
        "negative": request.negative,
        "base": {
            "name": request.base,
            "sha256": weights_sha256(base.folder),
            "prediction": base.prediction_type,
            "tokenizer": request.tokenizer,
        },
        "loras": [
            {"file": str(lora.file), "weight": lora.weight, "sha256": weights_sha256(lora.file.expanduser())}
            for lora in request.loras
        ],
        "embeddings": [{"file": str(file), "sha256": weights_sha256(file.expanduser())} for file in request.embeddings],
        "vae": {"name": request.vae, "sha256": weights_sha256(vae.path)} if vae else None,
        "controls": [
            {
                **asdict(control_map.control),
                "file": str(control_map.control.file),
                "type": control_map.type,
                "sha256": control_map.file_sha256,
                "controlnet": {"name": controlnet.name, "sha256": weights_sha256(controlnet.folder)},
            }
            for control_map, controlnet in zip(maps, controlnets, strict=True)
        ],
        "annotate": request.annotate,
        "control_half": request.control_half,
        "vae_tiling": tiled,
        "compile": execution.compile is not None,
        "sampler": request.sampler,
        "steps": request.steps,
        "cfg": request.cfg,
        "width": size[0],
        "height": size[1],
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": library_versions(),
    }
    made_maps = {
        f"{control_map.type}{number + 1 if len(maps) > 1 else ''}": control_map.made_png
        for number, control_map in enumerate(maps)
        if control_map.made_png
    }
    total = request.num * request.steps
    progress(0, total)
    for number in range(request.num):
        seed = request.seed + number

        def after_step(_: Any, step: int, __: Any, values: dict[str, Any], before: int = number * request.steps) -> Any:
            # Samplers of second order call more than once a step.
            progress(min(before + step + 1, before + request.steps), total)
            return values

        painted = pipeline(
            **arguments,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=after_step,
            output_type="np",
        ).images[0]
        if not np.isfinite(painted).all():
            raise RequestError(f"the picture is not a number in {settings['dtype']}; use --dtype float32 or bfloat16")
        image = (painted * 255).round().astype(np.uint8)
        yield Picture(image, seed, {**settings, "seed": seed}, made_maps, previews.take()[0] if previews else {})


def pair(
    controls: tuple[Control, ...], controlnets: list[tuple[ControlNet, str | None]]
) -> list[tuple[ControlNet, str | None]]:
    """The ControlNet (and its type) of each control: by type where both are known, else by order."""
    if len(controls) != len(controlnets):
        raise RequestError(
            f"{len(controls)} control maps, {len(controlnets)} ControlNets: expected as many --controlnet as --control"
        )
    left = list(controlnets)
    paired: dict[int, tuple[ControlNet, str | None]] = {}
    for number, control in enumerate(controls):
        match = next((net for net in left if control.type and net[1] == control.type), None)
        if match:
            paired[number] = match
            left.remove(match)
    return [paired[number] if number in paired else left.pop(0) for number in range(len(controls))]
