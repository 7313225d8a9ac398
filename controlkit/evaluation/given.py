"""Pictures that are there already, held against the maps that they should follow, whatever painted them.

A picture belongs to the row whose picture has its name, else to the row whose map it was painted under, as the settings
in its PNG tell. It is compared at its own size. Nothing is painted, so the rows are control, chance and real.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.data.folder import find_pictures
from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.evaluation.evaluate import Answer, Case, Question, conclude, judging_more, questioned_rows
from controlkit.evaluation.obedience import judge_of_rows
from controlkit.evaluation.reading import at_size
from controlkit.evaluation.sets import FeatureFiles
from controlkit.generation.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.evaluation.obedience import Judge
    from controlkit.processes import Processes

    Picture = NDArray[np.uint8]


def evaluate_pictures(
    question: Question,
    out: Path,
    *,
    processes: Processes,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Answer, SeenGiven]:
    """Score the pictures of a folder; `out` is the report's. Every process scores its share; all get the answer, and
    what shows its pictures."""
    assert question.pictures is not None
    folder = Path(question.pictures).expanduser()
    if not folder.is_dir():
        raise RequestError(f"--pictures {folder}: there is no such folder")
    if question.condition is None:
        raise RequestError(f"--pictures {folder}: expected the type of the maps too, e.g. --pictures canny={folder}")
    rows = questioned_rows(question, question.condition, say, processes)
    judge = judging_more(judge_of_rows(f"--pictures {folder}", question.condition, rows), question, device)
    pairs = pair(rows, folder, question.condition, say)
    reader = SeenGiven(judge, [(rows[number], path) for number, path in pairs])
    features = FeatureFiles(judge.contents, out, processes)
    cases, shown, mine = [], [], processes.slice(list(range(len(pairs))))
    progress(0, len(mine))
    for done, place in enumerate(mine):
        number, path = pairs[place]
        made, picture, control_map = reader.read(place)
        other, size = rows[pairs[(place + 1) % len(pairs)][0]], (made.shape[1], made.shape[0])
        other_picture, other_map = at_size(other, size, judge)
        look, real = judge.look([made]), judge.look([picture])
        others = judge.look([other_picture]) if judge.of_people else None
        seen = {
            "control": judge.measure_row(rows[number], look, control_map, picture, real),
            "real": judge.measure_row(rows[number], real, control_map, picture, real),
            "chance": judge.measure_row(other, look, other_map, other_picture, others),
        }
        files = {"control": str(path)}
        cases.append(Case.of(number, rows[number], judge, seen, files, place))
        shown.append(seen)
        features.add({"control": look, "real": real})
        progress(done + 1, len(mine))
    return conclude(question, judge, {}, cases, shown, features, stated={}), reader


def pair(rows: list[Row], folder: Path, condition: str, say: Callable[[str], None]) -> list[tuple[int, Path]]:
    """The number of a row and its picture, in the order of the rows; what is left over is said."""
    names = {Path(row.file_name).stem: number for number, row in enumerate(rows)}
    maps = {
        hashlib.sha256(row.control.read_bytes()).hexdigest(): number
        for number, row in enumerate(rows)
        if row.control is not None
    }
    found: dict[int, Path] = {}
    strange, more = 0, 0
    for name in sorted(find_pictures(folder)):
        path = folder / name
        number = names.get(path.stem, maps.get(_painted_under(path, condition)))
        if number is None:
            strange += 1
        elif number in found:
            more += 1
        else:
            found[number] = path
    if len(found) < 2:
        raise RequestError(
            f"--pictures {folder}: {len(found)} of its pictures belong to rows of the dataset; expected at least 2, "
            f"with the names of the dataset's pictures or painted by controlkit under its maps"
        )
    for count, what in ((strange, "belong to no row"), (more, "belong to rows that have one already")):
        if count:
            say(f"--pictures {folder}: {count} pictures {what} and are left out")
    if len(found) < len(rows):
        say(f"--pictures {folder}: {len(rows) - len(found)} of {len(rows)} rows have no picture")
    return sorted(found.items())


def _painted_under(path: Path, condition: str) -> str:
    """The SHA-256 of the map of that type in the settings of a generated PNG; empty if they tell of none."""
    try:
        controls = read_settings(path)["controls"]
    except (ValueError, KeyError):
        return ""
    return next((str(each["sha256"]) for each in controls if each["type"] in (condition, None)), "")


@dataclass(frozen=True)
class SeenGiven:
    """The pictures of the cases, to score and to look at."""

    judge: Judge
    pairs: list[tuple[Row, Path]]

    def read(self, place: int) -> tuple[Picture, Picture, Picture]:
        """What was painted, the real picture, the map."""
        row, path = self.pairs[place]
        made = read_picture(path)
        return made, *at_size(row, (made.shape[1], made.shape[0]), self.judge)

    def __call__(self, case: Case) -> dict[str, Any]:
        made, real, wanted = self.read(case.place)
        return {"map": wanted, "painted": made, "read from it": self.judge.annotator(made), "real": real}
