"""The size at which a network looks, and the way back."""

from dataclasses import dataclass

import numpy as np
import pytest

from annotators.dense import DenseAnnotator
from annotators.geometry import LONGEST_ASPECT, padded, scaled, working_size
from tests.conftest import draw_photo


@dataclass(frozen=True)
class Echo(DenseAnnotator):
    """A network that answers with the picture itself."""

    def load(self):
        return None

    def forward(self, network, pixels):
        assert pixels.shape[2] % self.multiple == pixels.shape[3] % self.multiple == 0
        return pixels / 255


Echo.type = "echo"


@pytest.mark.parametrize("size", [(640, 480), (37, 51), (200, 64), (65, 64)])
def test_what_the_network_says_of_a_place_comes_back_to_it(size):
    """At the working size nothing is resized, and what was padded is cut off."""
    photo = draw_photo(1, *size)
    assert np.array_equal(Echo(resolution=min(size), device="cpu")(photo), photo)


@pytest.mark.parametrize("resolution", [48, 100, 200])
def test_nothing_is_moved_on_the_way(resolution):
    """A ramp seen at another size is the same ramp, but for the border pixels."""
    ramp = np.stack([np.tile(np.linspace(0, 255, 150), (100, 1))] * 3, axis=2).round().astype(np.uint8)
    for picture in (ramp, ramp.transpose(1, 0, 2)):
        made = Echo(resolution=resolution, device="cpu")(picture).astype(int)
        assert np.abs(made - picture)[4:-4, 4:-4].max() <= 2


@pytest.mark.parametrize("size", [(640, 480), (1440, 1920), (1080, 1920), (1000, 400), (37, 51)])
@pytest.mark.parametrize("resolution", [512, 100])
def test_both_sides_are_scaled_alike(size, resolution):
    """Within the rounding to a pixel; 64 pixels would be up to 6 %."""
    height, width = working_size(*size, resolution)
    assert min(height, width) == resolution
    assert abs(height / size[0] - width / size[1]) <= 0.5 / min(size)


@pytest.mark.parametrize("size", [(1, 1000), (3, 5000), (4000, 10)])
def test_a_long_picture_does_not_fill_the_memory(size):
    height, width = working_size(*size, 512)
    assert height * width <= 1.1 * LONGEST_ASPECT * 512**2
    assert min(height, width) >= 1


def test_padding_mirrors_the_picture():
    photo = draw_photo(1, 50, 40)
    made = padded(photo, 64)
    assert made.shape == (64, 64, 3)
    assert np.array_equal(made[:40, :50], photo)
    assert np.array_equal(made[40:64, :50], photo[:-25:-1])
    assert np.array_equal(scaled(photo, 40), photo)


def test_a_resolution_of_nothing_is_refused():
    with pytest.raises(ValueError, match="echo: resolution=0: expected 1 pixel or more"):
        Echo(resolution=0)
