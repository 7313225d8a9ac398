"""Jointed dolls: a gesture becomes joints, joints become bodies and the 18 keypoints of OpenPose.

A doll of height 1 stands on the floor at the origin and faces -z, towards the camera; its left is +x. A limb points
by two angles in degrees, (out, forward): hanging down is (0, 0), raised sideways (90, 0), overhead (180, 0), stretched
to the front (0, 90).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlkit.toybox.solids import Body, Capsule, Ellipsoid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controlkit.toybox.solids import Point

    Vector = NDArray[np.float64]

Limb = tuple[float, float]


@dataclass(frozen=True)
class Gesture:
    """The angles of one side's upper arm, forearm, thigh and shin, then the other's; and how far the doll may turn."""

    words: str
    one: tuple[Limb, Limb, Limb, Limb]
    other: tuple[Limb, Limb, Limb, Limb]
    turn: tuple[float, float] = (0, 35)  # degrees to either side


_HANGING = ((14, 0), (6, 10))
_STRAIGHT = ((4, 0), (4, 0))

GESTURES: dict[str, Gesture] = {
    gesture.words: gesture
    for gesture in (
        Gesture("standing", (*_HANGING, *_STRAIGHT), (*_HANGING, *_STRAIGHT)),
        Gesture("waving", ((100, 10), (168, 5), *_STRAIGHT), (*_HANGING, *_STRAIGHT)),
        Gesture("with raised arms", ((148, 0), (160, 0), *_STRAIGHT), ((148, 0), (160, 0), *_STRAIGHT)),
        Gesture("with arms spread", ((88, 0), (90, 0), (12, 0), (10, 0)), ((88, 0), (90, 0), (12, 0), (10, 0))),
        Gesture("with hands on hips", ((50, -12), (-52, 14), (10, 0), (8, 0)), ((50, -12), (-52, 14), (10, 0), (8, 0))),
        Gesture("pointing", ((86, 8), (88, 8), *_STRAIGHT), (*_HANGING, *_STRAIGHT)),
        Gesture(
            "walking", ((10, 34), (6, 58), (2, -26), (2, -50)), ((10, -34), (6, -12), (2, 30), (2, 8)), turn=(35, 75)
        ),
        Gesture(
            "kicking", ((62, -8), (50, 10), (4, 4), (2, -2)), ((70, 10), (86, 10), (8, 66), (6, 50)), turn=(25, 70)
        ),
        Gesture("dancing", ((140, 0), (172, 0), (6, 0), (4, 0)), ((52, -8), (-48, 14), (48, 8), (-6, -6))),
    )
}

# Of a doll of height 1. Limbs are thicker than a person's, so that they can be seen in a picture of 64 pixels.
_HIP, _NECK, _HEAD = 0.49, 0.795, 0.905
_SHOULDER_OUT, _HIP_OUT = 0.118, 0.068
_UPPER_ARM, _FOREARM, _THIGH, _SHIN, _FOOT = 0.17, 0.155, 0.225, 0.215, 0.085
_HEAD_RADIUS = 0.095
_JOINT = 1.12  # a joint is a ball a little thicker than the limb

# How the parts are tinted: the doll's colour, times this, towards white or black.
PLAIN, FACE, JOINT, EYE = "plain", "face", "joint", "eye"


@dataclass(frozen=True)
class Doll:
    """Bodies with their tints, and the keypoints in OpenPose's order: positions (18, 3), and whether each looks towards
    the camera (only the face can look away; nothing else can hide what other things do not)."""

    bodies: list[tuple[Body, str]]
    keypoints: Vector
    facing: NDArray[np.bool_]


def pose(gesture: Gesture, *, height: float, yaw: float, lean: float, mirrored: bool, jitter: Vector) -> Doll:
    """The doll in that gesture. `yaw` turns and `lean` tilts it, in degrees; `jitter` (2, 4, 2) is added to the angles;
    `mirrored` swaps the sides."""
    angles = np.array([gesture.one, gesture.other]) + jitter
    if mirrored:
        angles = angles[::-1]

    # The upper body leans about the hips.
    tilt = np.radians(lean)
    up = np.array([np.sin(tilt), np.cos(tilt), 0])
    across = np.array([np.cos(tilt), -np.sin(tilt), 0])
    hips = np.array([0, _HIP, 0])
    chest, neck, head = (hips + (level - _HIP) * up for level in (0.70, _NECK, _HEAD))

    bodies: list[tuple[str, list[Vector], float, str]] = []  # kind, points, radius, tint
    joints: dict[str, Vector] = {}
    for name, side, (upper_arm, forearm, thigh, shin) in (("left", 1, angles[0]), ("right", -1, angles[1])):
        shoulder = neck - 0.015 * up + side * _SHOULDER_OUT * across
        elbow = shoulder + _UPPER_ARM * _direction(upper_arm, side)
        wrist = elbow + _FOREARM * _direction(forearm, side)
        hand = wrist + 0.03 * _direction(forearm, side)
        hip = hips + side * _HIP_OUT * np.array([1, 0, 0])
        knee = hip + _THIGH * _direction(thigh, side)
        ankle = knee + _SHIN * _direction(shin, side)
        toes = ankle + _FOOT * _foot_direction(shin, side)
        joints |= {
            f"{name} {part}": point
            for part, point in (
                ("shoulder", shoulder),
                ("elbow", elbow),
                ("wrist", wrist),
                ("hip", hip),
                ("knee", knee),
                ("ankle", ankle),
            )
        }
        bodies += [
            ("limb", [shoulder, elbow], 0.040, PLAIN),
            ("limb", [elbow, wrist], 0.034, PLAIN),
            ("limb", [hip, knee], 0.054, PLAIN),
            ("limb", [knee, ankle], 0.042, PLAIN),
            ("limb", [ankle, toes], 0.038, PLAIN),
            ("ball", [hand], 0.042, FACE),
            ("ball", [shoulder], 0.046 * _JOINT, JOINT),
            ("ball", [elbow], 0.038 * _JOINT, JOINT),
            ("ball", [knee], 0.048 * _JOINT, JOINT),
        ]
    bodies += [
        ("limb", [hips + 0.03 * up, chest], 0.072, PLAIN),
        ("limb", [neck - 0.02 * up, head], 0.036, JOINT),
        ("ball", [head], _HEAD_RADIUS, FACE),
    ]

    # The face, on the head. Ears and eyes lie a little below the surface, so that they are seen on the head.
    forward, above = np.array([0, 0, -1]), up
    face = {
        "nose": forward,
        "left eye": _normalised(forward * 0.88 + above * 0.22 + across * 0.42),
        "right eye": _normalised(forward * 0.88 + above * 0.22 - across * 0.42),
        "left ear": across,
        "right ear": -across,
    }
    joints |= {name: head + 0.9 * _HEAD_RADIUS * out for name, out in face.items()}
    joints["neck"] = (joints["left shoulder"] + joints["right shoulder"]) / 2
    bodies += [("ball", [head + 0.93 * _HEAD_RADIUS * face[name]], 0.0185, EYE) for name in ("left eye", "right eye")]

    # Turn, set on the floor, scale.
    turn = np.radians(yaw)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    lowest = min(point[1] - radius for kind, points, radius, _ in bodies for point in points)

    def placed(points: list[Vector]) -> Vector:
        moved: Vector = height * ((np.array(points) - [0, lowest, 0]) @ rotation.T)
        return moved

    ends = iter(placed([point for _, points, _, _ in bodies for point in points]).tolist())
    made: list[tuple[Body, str]] = []
    for kind, _, radius, tint in bodies:
        if kind == "limb":
            made.append((Capsule(tuple(next(ends)), tuple(next(ends)), height * radius), tint))
        else:
            made.append((Ellipsoid.ball(tuple(next(ends)), height * radius), tint))
    torso, pelvis = placed([chest, hips]).tolist()
    made.append((Ellipsoid(tuple(torso), _scaled(height, 0.112, 0.115, 0.082), -turn), PLAIN))
    made.append((Ellipsoid(tuple(pelvis), _scaled(height, 0.108, 0.068, 0.082), -turn), JOINT))

    keypoints = placed([joints[name] for name in KEYPOINTS])
    # -z is nearly the direction towards the eye; an ear may look a little away from it and is still seen at the edge.
    facing = np.array([name not in face or (rotation @ face[name])[2] < 0.12 for name in KEYPOINTS])
    return Doll(made, keypoints, facing)


KEYPOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip


def _direction(limb: Vector, side: int) -> Vector:
    out, forward = np.radians(limb)
    return np.array([side * np.sin(out), -np.cos(out) * np.cos(forward), -np.cos(out) * np.sin(forward)])


def _foot_direction(shin: Vector, side: int) -> Vector:
    """At a right angle to the shin, to the front."""
    out, forward = np.radians(shin)
    return _normalised(np.array([side * 0.25, np.sin(forward) * np.cos(out), -np.cos(forward)]))


def _normalised(vector: Vector) -> Vector:
    unit: Vector = vector / np.linalg.norm(vector)
    return unit


def _scaled(height: float, x: float, y: float, z: float) -> Point:
    return height * x, height * y, height * z
