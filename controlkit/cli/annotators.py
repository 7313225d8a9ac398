"""`controlkit annotators`: which control types there are, the ways of making each, and whether each works here now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output

WORKS = "works here"


@click.command()
@common_options(answers=True)
def command(output: Output) -> int:
    """List the control types: backends, parameters, weights needed, licences, whether each works here now.

    The first backend of a type is the one that `annotate` uses; `--backend TYPE=BACKEND` chooses another, and
    `controlkit fetch TYPE=BACKEND` gets what it needs. Nothing is downloaded and no network is loaded here.
    """
    import controlkit.toybox.register  # noqa: F401  (its readers are backends too)
    from annotators import ANNOTATORS

    rows = [row(name, backend) for name in ANNOTATORS for backend in ANNOTATORS.backends(name)]
    lines: list[str] = []
    for each in rows:
        lines += lines_of(each)
    output.answer("\n".join(lines), {"annotators": rows})
    return 0


def row(type_name: str, backend: str) -> dict[str, Any]:
    """What there is to say of one backend."""
    from annotators import ANNOTATORS

    annotator = ANNOTATORS.create(type_name, backend)
    parameters = {
        name: getattr(annotator, name)
        for name in ANNOTATORS.parameters(type_name, backend)
        if name not in annotator.runs_with
    }
    state, problem = state_of(annotator)
    return {
        "type": type_name,
        "backend": backend,
        "default": backend == ANNOTATORS.backends(type_name)[0],
        "about": (type(annotator).__doc__ or "").strip().partition("\n")[0],
        "parameters": parameters,
        "needs": [
            {"repo": each.repo, "file": each.file, "megabytes": each.megabytes, "licence": each.licence}
            for each in getattr(annotator, "needs", ())
        ],
        "licence": annotator.licence,
        "state": state,
        "problem": problem,
    }


def state_of(annotator: Any) -> tuple[str, str | None]:
    """Whether it works here now, and the whole sentence of why not."""
    from annotators import MissingWeights

    try:
        getattr(annotator, "ready", annotator.libraries)()
    except ImportError as reason:
        return str(reason), str(reason)
    except MissingWeights as reason:
        advice = f"weights are not here: controlkit fetch {annotator.full_name}"
        return advice if annotator.needs else str(reason), str(reason)
    return WORKS, None


def lines_of(row: dict[str, Any]) -> list[str]:
    from annotators import ANNOTATORS

    name = ANNOTATORS.name_of(row["type"], row["backend"])
    chosen = "" if row["default"] else " (on request)"
    settings = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
    return [
        f"{name}{chosen}: {row['about']}",
        f"    {settings or 'no parameters'}",
        f"    {row['licence']}",
        *(
            f"    needs {each['file']} of {each['repo']}, {each['megabytes']:g} MB, {each['licence']}"
            for each in row["needs"]
        ),
        f"    {row['state']}",
    ]
