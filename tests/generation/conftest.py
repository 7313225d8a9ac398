"""Maps and ControlNets for the tests of generation."""

import pytest
from PIL import Image

from tests.conftest import draw_photo
from tests.painting import edges_of, strong_net


@pytest.fixture
def edge(tmp_path):
    """A canny map as another tool would save it."""
    path = tmp_path / "edge.png"
    Image.fromarray(edges_of(draw_photo(0, 96, 64))).save(path)
    return path


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    return {
        **{name: strong_net(name, folder / name) for name in ("toybox", "random-sd15", "random-sd21", "random-sdxl")},
        "second": strong_net("random-sd15", folder / "second", seed=1),
        "untyped": strong_net("random-sd15", folder / "untyped", condition=None),
    }
