"""The world `rooms`: what is said of a scene is what is seen in it, and simple scenes come out as computed by hand."""

import re

import cv2
import numpy as np
import pytest

from controlkit.toybox.camera import EYE, FOCAL, HORIZON, NEAREST, WALL, project
from controlkit.toybox.captions import MOST_WORDS, Described, caption, noun_phrase, relation_of
from controlkit.toybox.render import Part, render
from controlkit.toybox.scene import COLOURS, GROUNDS, contrast
from controlkit.toybox.solids import Box, Cone, Ellipsoid
from controlkit.toybox.worlds import WORLDS

WHITE = (250, 250, 250)
GREY = (120, 120, 120)
SIZE = 128


def room(*bodies, size=SIZE, **look):
    parts = [Part(body, number, WHITE, **look) for number, body in enumerate(bodies)]
    return render(parts, wall=GREY, floor=GREY, size=size)


def pixel(x, y, z, size=SIZE):
    u, v = project(x, y, z)
    return int(v * size), int(u * size)


def inner(mask):
    """Without the pixels at its edge, which mix with what is behind."""
    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


@pytest.fixture(scope="module")
def scenes():
    return [WORLDS["rooms"].plan(7, index).draw(64) for index in range(60)]


@pytest.fixture(scope="module")
def plans():
    return [WORLDS["rooms"].plan(8, index) for index in range(400)]


# Geometry, by hand


def test_the_empty_room():
    """The wall is WALL away, row v of the floor FOCAL EYE / (v - HORIZON), so that its brightness is 2v - 1."""
    empty = room()
    v = (np.arange(SIZE) + 0.5) / SIZE
    floor = v > 0.5
    assert np.allclose(empty.depth[~floor], WALL)
    assert np.allclose(empty.depth[floor], (FOCAL * EYE / (v[floor] - HORIZON))[:, None], rtol=1e-5)
    assert (np.diff(empty.depth[floor], axis=0) < 0).all()  # nearer and nearer, towards the camera
    assert (empty.depth_map[~floor] == 0).all()
    assert np.abs(empty.depth_map[floor] - 255 * (2 * v[floor, None] - 1)).max() <= 1
    assert (empty.owners == -1).all()


def test_a_ball_is_nearest_in_its_middle():
    """A ball of radius r at distance z is nearest at z - r, where its middle is seen, and its depth is symmetric."""
    ball = room(Ellipsoid.ball((0, 0.6, 11), 0.6))
    own = ball.owners == 0
    row, column = pixel(0, 0.6, 10.4)
    assert column == SIZE // 2
    assert ball.depth[row, column] == pytest.approx(10.4, abs=0.01)
    assert ball.depth[own].min() == pytest.approx(10.4, abs=0.01)
    assert ball.depth_map[own].max() == ball.depth_map[row, column]
    assert np.array_equal(own, own[:, ::-1])
    assert np.allclose(ball.depth, ball.depth[:, ::-1], atol=1e-4)
    # A ball away from the axis is seen as an ellipse: of the tangent cone, cut by the picture.
    squared = 11**2 + (EYE - 0.6) ** 2 - 0.6**2
    area = np.pi * (FOCAL * SIZE * 0.6) ** 2 * squared**0.5 / (11**2 - 0.6**2) ** 1.5
    assert own.sum() == pytest.approx(area, rel=0.01)


def test_the_front_of_a_box_is_a_rectangle_at_one_depth():
    box = room(Box((0, 0.5, 11), (0.7, 0.5, 0.5), yaw=0))
    front = (box.owners == 0) & (np.abs(box.depth - 10.5) < 1e-3)
    rows, columns = np.nonzero(front)
    (top, left), (bottom, right) = pixel(-0.7, 1, 10.5), pixel(0.7, 0, 10.5)
    assert [rows.min(), columns.min(), rows.max(), columns.max()] == pytest.approx([top, left, bottom, right], abs=1)
    assert front.sum() == len(np.unique(rows)) * len(np.unique(columns))
    upper = (box.owners == 0) & ~front  # the top, seen from above
    assert upper.any()
    assert np.nonzero(upper)[0].max() < rows.min() + 1


def test_the_top_of_a_cone_is_where_it_is_projected():
    cone = room(Cone((0.8, 0, 11), 0.6, 1.4))
    rows, columns = np.nonzero(cone.owners == 0)
    row, column = pixel(0.8, 1.4, 11)
    assert rows.min() == pytest.approx(row, abs=2)
    assert columns[rows == rows.min()].mean() == pytest.approx(column, abs=1)


def test_what_is_nearer_hides_what_is_behind():
    """Whatever the order in which they are drawn."""
    near, far = Ellipsoid.ball((0, 0.5, 10), 0.5), Ellipsoid.ball((0, 0.8, 12), 0.8)
    one, other = room(near, far), room(far, near)
    row, column = pixel(0, 0.5, 10)
    assert (one.owners[row, column], other.owners[row, column]) == (0, 1)
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.depth, other.depth)


def test_a_shadow_falls_away_from_the_light_and_not_before_the_thing():
    ball = Ellipsoid.ball((0, 0.6, 11), 0.6)
    with_shadow, without = room(ball), room(ball, casts_shadow=False)
    darker = without.image.astype(int).sum(axis=2) - with_shadow.image.astype(int).sum(axis=2)
    assert darker.min() >= 0
    assert np.nonzero(darker > 20)[1].mean() > SIZE / 2  # the light comes from the left
    assert (darker[inner(with_shadow.owners == 0)] == 0).all()


def test_a_shiny_thing_has_a_highlight():
    ball = Ellipsoid.ball((0, 0.6, 11), 0.6)
    dull, shiny = (render([Part(ball, 0, (160, 20, 20), on)], GREY, GREY, 64) for on in (False, True))
    green = [made.image[:, :, 1][inner(made.owners == 0)].max() for made in (dull, shiny)]
    assert green[0] < 30
    assert green[1] > 150


# Scenes


def test_a_thing_has_the_colour_that_is_named(scenes):
    lights = np.linspace(0.7, 1.1, 9)[:, None, None]  # a white thing in half shadow is grey, and still white
    values = lights * np.array(list(COLOURS.values()), float)
    for scene in scenes:
        for number, thing in enumerate(scene.facts["objects"]):
            middle = np.median(scene.image[scene.owners == number], axis=0)  # a glint counts little
            nearest = np.linalg.norm(values - middle, axis=2).min(axis=0).argmin()
            assert list(COLOURS)[nearest] == thing["colour"], scene.caption


def test_wall_and_floor_have_the_colours_that_are_named(scenes):
    values = np.array(list(GROUNDS.values()), float)
    for scene in scenes:
        for ground, rows in (("wall", slice(0, 28)), ("floor", slice(36, 64))):
            colour = np.median(scene.image[rows][scene.owners[rows] == -1], axis=0)
            assert list(GROUNDS)[np.linalg.norm(values - colour, axis=1).argmin()] == scene.facts[ground]


def test_every_thing_stays_mostly_visible():
    """At least half of the pixels that it would have alone."""
    shares = []
    for index in range(40):
        plan = WORLDS["rooms"].plan(9, index)
        parts = [Part(body, number, WHITE) for number, thing in enumerate(plan.things) for body, _ in thing.bodies]
        together = render(parts, GREY, GREY, 64).owners
        for number in range(len(plan.things)):
            alone = render([part for part in parts if part.thing == number], GREY, GREY, 64).owners
            shares.append((together == number).sum() / (alone == number).sum())
    assert min(shares) > 0.5
    assert np.mean(shares) > 0.95


def test_facts_say_where_things_are(scenes):
    for scene in scenes:
        for number, thing in enumerate(scene.facts["objects"]):
            rows, columns = np.nonzero(scene.owners == number)
            u0, v0, u1, v1 = (64 * side for side in thing["rectangle"])
            assert columns.min() >= int(u0)
            assert rows.min() >= int(v0)
            assert columns.max() <= u1
            assert rows.max() <= v1
            assert scene.depth[rows, columns].min() < thing["distance"] + 0.3


def test_what_a_caption_says_of_places_is_seen(scenes):
    seen = set()
    for scene in scenes:
        objects = scene.facts["objects"]
        middles = {
            thing["colour"]: np.nonzero(scene.owners == number)[1].mean() for number, thing in enumerate(objects)
        }
        distances = {thing["colour"]: scene.depth[scene.owners == n].min() for n, thing in enumerate(objects)}
        text = re.split(r" on an? | in front of an? (?:dark |light )?\w+ wall", scene.caption)[0]
        order = [word for word in re.findall(r"\w+", text) if word in COLOURS]
        assert sorted(order) == sorted(middles)
        if " left of " in text:
            assert middles[order[0]] < middles[order[1]]
        elif " right of " in text:
            assert middles[order[0]] > middles[order[1]]
        elif " in front of " in text:
            assert distances[order[0]] < distances[order[1]]
        elif " behind " in text:
            assert distances[order[0]] > distances[order[1]]
        elif " between " in text:
            assert middles[order[1]] < middles[order[0]] < middles[order[2]]
        elif "from left to right" in text:
            assert [middles[colour] for colour in order] == sorted(middles[colour] for colour in order)
        seen |= {words for words in (" left of ", " right of ", " between ", "from left to right") if words in text}
    assert len(seen) == 4


def test_captions_name_every_thing_as_it_is_and_are_short(plans):
    for plan in plans:
        assert len(plan.caption.split()) <= MOST_WORDS
        for thing in plan.facts["objects"]:
            shiny = "shiny " if thing["material"] == "shiny" else ""
            assert re.search(rf"\b(a|an|{thing['size']}) {shiny}{thing['colour']} {thing['shape']}\b", plan.caption)
            if thing["gesture"] and thing["gesture"] in plan.caption:
                assert thing["shape"] == "doll"
        for ground in re.findall(r"an? ([\w ]+?) floor", plan.caption):
            assert plan.facts["floor"] in ground
        for ground in re.findall(r"in front of an? ([\w ]+?) wall", plan.caption):
            assert plan.facts["wall"] in ground
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", plan.caption)


def test_scenes_have_the_variety_that_they_promise(plans):
    things = [thing for plan in plans for thing in plan.facts["objects"]]
    assert {len(plan.facts["objects"]) for plan in plans} == {1, 2, 3, 4}
    assert {thing["shape"] for thing in things} == {"ball", "box", "cone", "cylinder", "doll"}
    assert {thing["colour"] for thing in things} == set(COLOURS)
    assert {plan.facts["wall"] for plan in plans} == {plan.facts["floor"] for plan in plans} == set(GROUNDS)
    assert 0.5 < np.mean([bool(plan.people) for plan in plans]) < 0.8
    assert all(len({thing["colour"] for thing in plan.facts["objects"]}) == len(plan.things) for plan in plans)


def test_nothing_is_lost_against_wall_or_floor(plans):
    for plan in plans:
        for thing in plan.facts["objects"]:
            for ground in (plan.facts["wall"], plan.facts["floor"]):
                assert contrast(COLOURS[thing["colour"]], GROUNDS[ground]) > 90
        assert contrast(GROUNDS[plan.facts["wall"]], GROUNDS[plan.facts["floor"]]) > 75


def test_a_small_thing_never_looks_as_big_as_a_big_one(plans):
    """However near it stands: sizes in a caption can be seen."""
    widths = {}
    for plan in plans:
        for thing in plan.things:
            if thing.gesture is None:
                left, _, right, _ = thing.outline.rectangle
                widths.setdefault((thing.shape, thing.size), []).append(right - left)
    for shape in ("ball", "box", "cone", "cylinder"):
        assert max(widths[shape, "small"]) < min(widths[shape, "big"])


# Words


def thing(u=0.5, z=11.0, size="big", colour="orange", shape="ball", shiny=False, gesture=None):
    return Described(shape, colour, size, shiny, gesture, u, z)


def test_noun_phrases():
    assert noun_phrase(thing(shiny=True)) == "a big shiny orange ball"
    assert noun_phrase(thing(), size=False) == "an orange ball"
    doll = thing(shape="doll", gesture="waving", size="small")
    assert noun_phrase(doll) == "a small orange doll waving"
    assert noun_phrase(doll, gesture=False) == "a small orange doll"


def test_a_caption_that_would_be_too_long_leaves_something_out():
    dolls = [thing(u=0.2 * n, shape="doll", gesture="with hands on hips", shiny=True) for n in range(4)]
    lengths = [
        len(caption(dolls, "light green", "dark red", np.random.default_rng(seed)).split()) for seed in range(100)
    ]
    assert 30 < max(lengths) <= MOST_WORDS


def test_relations():
    assert relation_of(thing(u=0.3), thing(u=0.6)) == "left of"
    assert relation_of(thing(u=0.6), thing(u=0.3)) == "right of"
    assert relation_of(thing(z=10), thing(z=12)) == "in front of"
    assert relation_of(thing(z=12), thing(z=10)) == "behind"
    assert relation_of(thing(), thing()) is None


def test_the_nearest_floor_is_at_the_lower_edge():
    assert project(0, 0, NEAREST)[1] == pytest.approx(1)
    assert project(0, 0, WALL)[1] == pytest.approx(0.5)
