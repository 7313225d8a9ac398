"""Many requests: read from lines of JSON, all checked before any is painted, models loaded once for those alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.generation.batches import batches_of_all, runs_of
from controlkit.generation.controls import type_of
from controlkit.generation.execution import Execution
from controlkit.generation.generate import load_models, paint
from controlkit.generation.limits import refuse_what_cannot_be
from controlkit.generation.options import request_of
from controlkit.generation.plan import make_plan
from controlkit.generation.record import Recorder
from controlkit.generation.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from controlkit.generation.generate import Models, Picture
    from controlkit.generation.request import Request


def read_requests(file: Path, defaults: Mapping[str, Any]) -> list[Request]:
    """One request a line, by the names of the options; `defaults` stand where a line says nothing. Every bad line has
    its number in the refusal."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RequestError(f"--requests {file}: there is no such file") from None
    except UnicodeDecodeError:
        raise RequestError(f"--requests {file}: is no text in UTF-8") from None
    requests, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = request_of({**defaults, **_options(line)})
            make_plan(request, lambda text: None)  # as far as it goes without weights
        except ValueError as reason:
            problems += [f"{file} line {number}: {each}" for each in str(reason).split("\n")]
        else:
            requests.append(request)
    if problems:
        raise RequestError("\n".join(problems))
    if not requests:
        raise RequestError(f'--requests {file}: holds no request; expected lines like {{"prompt": "a red ball"}}')
    return requests


def _options(line: str) -> dict[str, Any]:
    try:
        options = json.loads(line)
    except ValueError as reason:
        raise RequestError(f"is not JSON ({reason})") from None
    if not isinstance(options, dict):
        raise RequestError('is no JSON object; expected one like {"prompt": "a red ball"}')
    return {name.replace("_", "-"): value for name, value in options.items()}


@refuse_what_cannot_be
def paint_many(
    requests: list[Request],
    *,
    device: torch.device,
    dtype: torch.dtype,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    there: set[str],
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Iterator[Picture]:
    """The pictures of all requests, those with the same models one after the other, and several of those that ask alike
    together. Pictures whose fingerprint is `there` are left out. `progress` counts pictures."""
    first: dict[Any, int] = {}
    for number, request in enumerate(requests):
        first.setdefault(models_of(request), number)
    order = sorted(range(len(requests)), key=lambda number: first[models_of(requests[number])])
    total, done = sum(request.num for request in requests), 0
    models: Models | None = None
    loaded: Any = None
    progress(0, total)
    for request in requests:
        execution.check(device, request.walked_steps)
    recorded = Recorder(device=device, dtype=dtype, execution=execution)
    plans = (make_plan(requests[number], say) for number in order)
    for plan, run in runs_of(batches_of_all(plans)):
        wanted: list[bool] = []
        batches = []
        for batch in run:
            missing = [fingerprint(settings) not in there for settings in recorded(batch)]
            done += missing.count(False)
            if any(missing):
                batches.append(batch)
                wanted += missing
        if not batches:
            continue
        if models is None or loaded != models_of(plan.request):
            models = None  # the old ones leave the memory before others enter
            models, loaded = load_models(plan, device=execution.home(device), dtype=dtype), models_of(plan.request)
        pictures = paint(plan, models, device=device, execution=execution, batches=batches, say=say)
        for picture, is_wanted in zip(pictures, wanted, strict=True):
            if is_wanted:
                done += 1
                progress(done, total)
                yield picture


def models_of(request: Request) -> Any:
    """What decides the loaded models and their order: requests that agree in it share them."""
    types = tuple(type_of(control) for control in request.controls)  # by which nets are chosen or paired
    texts = (request.base, request.prediction, request.tokenizer, request.vae)
    return texts, request.loras, request.hypernetworks, request.embeddings, request.controlnets, types


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Equal for pictures of equal settings, whatever versions made them."""
    left_out = ("versions", "format", "kind")
    return json.dumps({key: value for key, value in settings.items() if key not in left_out}, sort_keys=True)


def fingerprints(folder: Path) -> set[str]:
    """Of the generated pictures in a folder."""
    found = set()
    for path in folder.glob("*.png"):
        try:
            found.add(fingerprint(read_settings(path)))
        except ValueError:  # a map, or a picture of another tool
            continue
    return found
