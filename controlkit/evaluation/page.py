"""A page of HTML that opens from the disk with nothing beside it: its pictures and its style are inside."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from controlkit.evaluation.scores import Score

_WIDEST = 256  # pixels of a picture in a row of several


def html_page(title: str, body: str) -> str:
    """`title` and `body` are HTML already."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style></head><body><main>
{body}
</main></body></html>
"""


def data_uri(picture: NDArray[np.uint8], widest: int = _WIDEST) -> str:
    """The picture itself, in the place of an address; no side longer than `widest`."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((widest, widest))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def verdict(obedience: Score | None) -> str:
    """Where the control lies, in large print; nothing where there is no such share."""
    if obedience is None:
        return ""
    return (
        f'<p class="verdict"><b>{obedience.mean:.0%}</b> of the way from no control to the best that this base could '
        f'paint <span class="interval">({interval(obedience, percent=True)})</span></p>'
    )


def interval(score: Score, *, percent: bool = False) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"{score.low:.0%} to {score.high:.0%}" if percent else f"{score.low:.4f} to {score.high:.4f}"


_STYLE = """
:root { color-scheme: light dark; --ink: #22262e; --faint: #6a7079; --line: #dfe3e8; --page: #fff; --control: #1f63b5;
        --no-control: #b9bec6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --faint: #9aa1ab; --line: #363b44; --page: #16181c; --control: #6ea8f0;
          --no-control: #5a616c; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.15rem; } .verdict b { font-size: 2rem; }
.facts, .interval, small, .prompt td { color: var(--faint); }
th small, td small { display: block; font-weight: 400; }
.facts { font-size: .9rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.sheet td, .sheet th { border: 0; padding: .2rem; }
.sheet thead th { font-weight: 500; color: var(--faint); font-size: .85rem; }
.sheet img { width: 8.5rem; min-width: 6rem; display: block; image-rendering: pixelated; background: #888; }
.prompt td { font-size: .85rem; padding-bottom: .9rem; }
svg { width: 100%; max-width: 45rem; display: block; } svg text { fill: var(--faint); font-size: 12px; }
rect.control, i.control { fill: var(--control); background: var(--control); opacity: .8; }
rect.no_control, i.no_control { fill: var(--no-control); background: var(--no-control); }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin: 0 .2rem 0 .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .85rem; }
.whole { max-width: 100%; }
.typed th { min-width: 9rem; width: 30%; }
"""
