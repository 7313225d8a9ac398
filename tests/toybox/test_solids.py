"""Bodies: rays meet them where an independent test of "is this point inside?" says, and shadows cover their points."""

import cv2
import numpy as np
import pytest

from controlkit.toybox.camera import EYE, Rays
from controlkit.toybox.solids import Box, Capsule, Cone, Cylinder, Ellipsoid

BODIES = {
    "ball": Ellipsoid.ball((0.3, 0.7, 11.0), 0.6),
    "ellipsoid": Ellipsoid((-0.2, 0.9, 10.5), (0.6, 0.3, 0.4), yaw=0.7),
    "capsule": Capsule((-0.3, 0.3, 11.0), (0.4, 1.1, 10.6), 0.25),
    "upright capsule": Capsule((0.1, 0.3, 11.0), (0.1, 1.1, 11.0), 0.2),
    "box": Box((0.2, 0.5, 11.0), (0.5, 0.5, 0.4), yaw=0.5),
    "cone": Cone((0.1, 0.0, 11.0), 0.6, 1.3),
    "cylinder": Cylinder((-0.1, 0.0, 10.0), 0.5, 1.1),
}


def turned(points, centre, yaw):
    x, y, z = (points - centre).T
    return np.stack([np.cos(yaw) * x + np.sin(yaw) * z, y, np.cos(yaw) * z - np.sin(yaw) * x], axis=1)


def inside(body, points):
    """Whether points (N, 3) are in the body, straight from its definition."""
    match body:
        case Ellipsoid():
            return ((turned(points, body.centre, body.yaw) / body.radii) ** 2).sum(axis=1) <= 1
        case Capsule():
            start, end = np.array(body.start), np.array(body.end)
            share = np.clip((points - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
            return np.linalg.norm(points - start - share[:, None] * (end - start), axis=1) <= body.radius
        case Box():
            return (np.abs(turned(points, body.centre, body.yaw)) <= body.half).all(axis=1)
        case Cone() | Cylinder():
            x, y, z = (points - body.base).T
            reach = body.radius * (1 - y / body.height) if isinstance(body, Cone) else body.radius
            return (np.hypot(x, z) <= reach) & (y >= 0) & (y <= body.height)


def some_rays(body, count=300):
    """dx, dy of rays from the eye towards and around a body."""
    random = np.random.default_rng(0)
    low, high = np.array(body.bounds())
    x, y, z = random.uniform(low - 0.1, high + 0.1, (count, 3)).T
    return (x / z).astype(np.float32), ((y - EYE) / z).astype(np.float32)


@pytest.mark.parametrize("name", list(BODIES))
def test_a_ray_meets_a_body_where_it_first_is_inside(name):
    body = BODIES[name]
    dx, dy = some_rays(body)
    begin = body.bounds()[0][2]
    z = body.hit(Rays.of(dx[None], dy[None], begin))[0] + begin
    steps = np.linspace(begin - 0.01, body.bounds()[1][2] + 0.01, 800)
    points = np.stack([dx[:, None] * steps, EYE + dy[:, None] * steps, np.broadcast_to(steps, (len(dx), 800))], axis=2)
    within = inside(body, points.reshape(-1, 3)).reshape(len(dx), 800)
    first = np.where(within.any(axis=1), steps[within.argmax(axis=1)], np.inf)
    grazing = (within.sum(axis=1) < 3) & (np.isfinite(z) | within.any(axis=1))  # too short for the steps to judge
    assert grazing.mean() < 0.1
    assert np.array_equal(np.isfinite(z)[~grazing], np.isfinite(first)[~grazing])
    met = np.isfinite(first) & ~grazing
    assert met.sum() > 50
    assert np.abs(z[met] - first[met]).max() < 2 * (steps[1] - steps[0])


@pytest.mark.parametrize("name", list(BODIES))
def test_normals_point_out_of_the_body(name):
    """A small step along the normal leaves the body, one against it enters it."""
    body = BODIES[name]
    dx, dy = some_rays(body)
    begin = body.bounds()[0][2]
    z = body.hit(Rays.of(dx[None], dy[None], begin))[0] + np.float32(begin)
    met = np.isfinite(z)
    x, y, z = dx[met] * z[met], EYE + dy[met] * z[met], z[met]
    normals = body.normal(x, y, z).T.astype(float)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = np.stack([x, y, z], axis=1).astype(float)
    assert not inside(body, points + 0.004 * normals).any()
    assert inside(body, points - 0.004 * normals).mean() > 0.97  # but for edges


@pytest.mark.parametrize("name", list(BODIES))
def test_a_body_is_within_its_bounds_and_touches_them(name):
    body = BODIES[name]
    low, high = np.array(body.bounds())
    points = np.random.default_rng(0).uniform(low - 0.2, high + 0.2, (400_000, 3))
    within = points[inside(body, points)]
    assert (within >= low - 1e-9).all()
    assert (within <= high + 1e-9).all()
    assert np.abs(within.min(axis=0) - low).max() < 0.12
    assert np.abs(within.max(axis=0) - high).max() < 0.12


@pytest.mark.parametrize("name", list(BODIES))
def test_a_shadow_is_where_the_points_of_the_body_throw_theirs(name):
    body = BODIES[name]
    slope_x, slope_z = 0.5, 0.6
    hull = cv2.convexHull(body.shadow(slope_x, slope_z).astype(np.float32))
    low, high = np.array(body.bounds())
    points = np.random.default_rng(0).uniform(low, high, (40_000, 3))
    x, y, z = points[inside(body, points)].T
    thrown = np.stack([x + slope_x * y, z + slope_z * y], axis=1).astype(np.float32)
    area = cv2.contourArea(hull)
    assert cv2.contourArea(cv2.convexHull(thrown)) == pytest.approx(area, rel=0.08)
    assert max(-cv2.pointPolygonTest(hull, point.tolist(), True) for point in thrown[::50]) < 0.02


def test_a_moved_body_is_met_as_much_further_on():
    for body in BODIES.values():
        low, high = np.array(body.bounds())
        moved_low, moved_high = np.array(body.moved(0.5, -2.0).bounds())
        assert np.allclose(moved_low - low, [0.5, 0, -2])
        assert np.allclose(moved_high - high, [0.5, 0, -2])
