"""The drawn worlds: the same scene from the same numbers, at every size; pictures that agree with their captions."""

import cv2
import numpy as np
import pytest

from controlkit.errors import RequestError
from controlkit.toybox.scene import COLOURS, GROUNDS
from controlkit.toybox.worlds import WORLDS, draw, find_world

NAMES = COLOURS | GROUNDS


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_scene_is_a_function_of_seed_and_index(world):
    scenes = [draw(world, *key, 32) for key in [(0, 5), (0, 5), (0, 6), (1, 5)]]
    assert np.array_equal(scenes[0].image, scenes[1].image)
    assert scenes[0].facts == scenes[1].facts
    assert all(not np.array_equal(scenes[0].image, other.image) for other in scenes[2:])


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("size", [8, 37, 64])
def test_every_map_has_the_size_of_its_picture(world, size):
    scene = draw(world, 0, 1, size)
    assert tuple(scene.maps) == find_world(world).maps
    for drawn in (scene.image, *scene.maps.values()):
        assert (drawn.shape, drawn.dtype) == ((size, size, 3), np.uint8)


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_scene_is_the_same_at_every_size(world):
    for index in range(6):
        plan = find_world(world).plan(3, index)
        large, small = plan.draw(256), plan.draw(64)
        pairs = [(large.image, small.image)]
        if world == "rooms":
            pairs.append((large.maps["depth"], small.maps["depth"]))
        for one, other in pairs:
            reduced = cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA)
            difference = np.abs(reduced.astype(int) - other).max(axis=2)
            assert (difference <= 4).mean() > 0.9  # all but edges and glints, where fewer rays count
            assert difference.mean() < 2


def test_circles_agree_with_their_captions():
    for index in range(30):
        scene = draw("circles", 0, index, 64)
        facts = scene.facts
        article = "an" if facts["disc"] == "orange" else "a"
        assert scene.caption == f"{article} {facts['disc']} circle on a {facts['ground']} ground"
        x, y = int(facts["x"] * 64), int(facts["y"] * 64)
        assert tuple(scene.image[y, x]) == NAMES[facts["disc"]]
        assert tuple(scene.image[0, 0]) == NAMES[facts["ground"]]


def test_the_area_of_a_disc_is_that_of_its_radius():
    """Coverage is exact to about a hundredth of the area."""
    for index in range(10):
        scene = draw("circles", 2, index, 128)
        disc, ground = (np.array(NAMES[scene.facts[name]], float) for name in ("disc", "ground"))
        share = (scene.image - ground) @ (disc - ground) / ((disc - ground) @ (disc - ground))
        assert share.sum() == pytest.approx(np.pi * (scene.facts["radius"] * 128) ** 2, rel=0.01)


def test_the_outline_of_a_circle_lies_on_its_edge():
    for index in range(10):
        scene = draw("circles", 2, index, 128)
        rows, columns, _ = np.nonzero(scene.maps["outline"])
        facts = scene.facts
        distance = np.hypot((columns + 0.5) / 128 - facts["x"], (rows + 0.5) / 128 - facts["y"])
        assert np.abs(distance - facts["radius"]).max() * 128 < 1
        # A line of one pixel: its light is its length.
        light = scene.maps["outline"][:, :, 0].sum() / 255
        assert light == pytest.approx(2 * np.pi * facts["radius"] * 128, rel=0.02)


def test_colours_can_be_told_apart():
    values = np.array(list(NAMES.values()), float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=2) + np.eye(len(values)) * 1e9
    assert distances.min() > 60


def test_an_unknown_world_is_answered_with_the_nearest():
    with pytest.raises(RequestError, match="unknown world 'romms': did you mean 'rooms'\\? known: circles, rooms"):
        draw("romms", 0, 0, 64)
