"""`controlkit annotators`: which control types there are, and whether each works here now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output


@click.command()
@common_options(answers=True)
def command(output: Output) -> int:
    """List the control types: parameters, licence, whether each works here now."""
    from annotators import ANNOTATORS

    rows: list[dict[str, Any]] = []
    for name in ANNOTATORS:
        annotator = ANNOTATORS.create(name)
        try:
            annotator.libraries()
            problem = None
        except ImportError as reason:
            problem = str(reason)
        parameters = {field: getattr(annotator, field) for field in ANNOTATORS.parameters(name)}
        about = (type(annotator).__doc__ or "").split("\n")[0]
        rows.append(
            {"type": name, "about": about, "parameters": parameters, "licence": annotator.licence, "problem": problem}
        )
    lines = []
    for row in rows:
        settings = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
        state = "works here" if row["problem"] is None else f"does not work here: {row['problem']}"
        lines += [f"{row['type']}: {row['about']}", f"    {settings or 'no parameters'} · {row['licence']} · {state}"]
    output.answer("\n".join(lines), {"annotators": rows})
    return 0
