"""The tree is the architecture: which room may know which, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every room and the rooms that it may import; foundations (errors, files, config, processes) are open to controlkit.
FOUNDATIONS = {"errors", "files", "config", "processes", ""}
ALLOWED = {
    "annotators": set(),
    "diffusion": set(),
    "models": {"annotators", "diffusion"},
    "data": {"annotators", "diffusion"},
    "generation": {"annotators", "diffusion", "models", "data"},
    "evaluation": {"annotators", "diffusion", "models", "data", "generation"},
    "training": {"annotators", "diffusion", "models", "data", "generation", "evaluation"},
    "toybox": {"annotators", "diffusion", "models", "data", "generation", "evaluation", "training"},
    "cli": {"annotators", "diffusion", "models", "data", "generation", "evaluation", "training", "toybox", "serving"},
}


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "controlkit":
                names = [f"controlkit.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        for name in names:
            parts = name.split(".")
            if parts[0] == "annotators":
                found.add("annotators")
            elif parts[0] == "controlkit":
                found.add(parts[1] if len(parts) > 1 else "")
    return found


def files():
    for path in sorted([*(ROOT / "annotators").rglob("*.py"), *(ROOT / "controlkit").rglob("*.py")]):
        relative = path.relative_to(ROOT)
        room = relative.parts[0] if relative.parts[0] == "annotators" else relative.parts[1]
        if len(relative.parts) > 2 or room == "annotators":
            yield pytest.param(path, room, id=relative.as_posix())


@pytest.mark.parametrize(("path", "room"), list(files()))
def test_arrows_point_one_way(path, room):
    allowed = ALLOWED[room] | {room} | (FOUNDATIONS if room not in ("annotators", "diffusion") else set())
    assert imports(path) <= allowed


@pytest.mark.parametrize("name", ["errors", "files", "config", "processes"])
def test_foundations_know_no_room(name):
    assert imports(ROOT / "controlkit" / f"{name}.py") <= FOUNDATIONS


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after that code."""
    code = f"import sys\n{code}\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True, cwd=ROOT)
    return set(done.stdout.partition("LOADED")[2].split())


def test_annotators_stand_alone():
    """Not even numpy and OpenCV before one is called."""
    assert not loaded_by("import annotators") & {"controlkit", "torch", "cv2", "numpy", "controlnet_aux"}


def test_no_file_loads_a_heavy_library_for_the_help():
    """What makes `controlkit --help` quick; its time stands in benchmarks/startup.py."""
    code = "from controlkit.cli.main import main\nmain(['--help'])\nmain(['annotate', '--help'])"
    assert not loaded_by(code) & {"torch", "diffusers", "transformers", "accelerate", "cv2", "datasets", "PIL", "numpy"}


def test_an_annotation_with_canny_does_not_load_torch(pictures):
    arguments = ["annotate", "--type", "canny", str(pictures), "-q"]
    loaded = loaded_by(f"from controlkit.cli.main import main\nassert main({arguments!r}) == 0")
    assert "cv2" in loaded
    assert "torch" not in loaded


def test_who_reads_ahead_for_a_training_loads_torch_alone():
    """Each of `data.workers` is an interpreter of its own, which imports what its rows are made of."""
    loaded = loaded_by("import controlkit.training.batches, controlkit.training.cache")
    assert "torch" in loaded
    assert not loaded & {"diffusers", "transformers", "accelerate", "cv2", "datasets"}


def test_no_two_test_files_share_a_name():
    """pytest would import one of them twice and not begin."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
