"""Masks: nothing outside the band changes, no stroke is lost, and what cannot be meant is said."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.errors import RequestError
from controlkit.generation.masks import Region, latent_hole, match_colours, paste_back, read_mask
from controlkit.generation.windows import Window, extend


def disc(width=96, height=64, radius=12):
    mask = np.zeros((height, width), np.float32)
    cv2.circle(mask, (width // 2, height // 2), radius, 1.0, -1)
    return mask


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("grow", "feather"), [(0, 0), (3, 0), (0, 5), (4, 8)])
@pytest.mark.parametrize("size", [(96, 64), (97, 61)])
def test_outside_the_band_the_picture_stays_bit_for_bit(grow, feather, size):
    mask = disc(*size)
    region = Region.of(mask, grow=grow, feather=feather)
    picture, painted = noise(*size), noise(*size, seed=1)
    done = paste_back(picture, painted, region.weight)
    away = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert (done[away > grow + feather + 1] == picture[away > grow + feather + 1]).all()
    assert (done[mask == 1] == painted[mask == 1]).all()
    assert (region.hole[region.weight > 0] > 0).all()  # what is put back was painted
    assert region.weight.max() == 1


def test_a_feather_falls_evenly():
    weight = Region.of(disc(), feather=7).weight
    row = weight[32, 48 + 12 :]
    assert row[0] == 1
    assert (np.diff(row[:9]) < 0).all()
    assert np.diff(row[:8]) == pytest.approx(np.diff(row[:8]).mean(), abs=1e-5)
    assert (row[9:] == 0).all()


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("stroke", [1, 2, 5])
def test_no_cell_of_a_stroke_is_lost(factor, stroke):
    mask = np.zeros((128, 128), np.float32)
    cv2.line(mask, (5, 11), (120, 97), 1.0, stroke)
    cells = latent_hole(mask, factor, grow=0)[0, 0].numpy()
    touched = mask.reshape(128 // factor, factor, 128 // factor, factor).max(axis=(1, 3))
    assert (cells == touched).all()
    grown = latent_hole(mask, factor, grow=1)[0, 0].numpy()
    assert (grown == cv2.dilate(cells, np.ones((3, 3)))).all()


def test_a_soft_edge_keeps_its_values():
    mask = np.zeros((16, 16), np.float32)
    mask[:8, :8] = 0.25
    assert torch.equal(latent_hole(mask, 8, grow=0)[0, 0], torch.tensor([[0.25, 0], [0, 0]]))
    assert (Region.of(mask).weight[:8, :8] == 1).all()


def test_a_shift_of_colour_is_taken_back():
    picture, mask = noise(96, 64) // 2 + 60, disc()
    region = Region.of(mask, feather=4)
    shifted = np.clip(picture.astype(int) + np.array([9, -6, 3]), 0, 255).astype(np.uint8)
    assert (match_colours(picture, shifted, region.weight) == picture).all()
    whole = np.ones_like(mask)
    assert (match_colours(picture, shifted, whole) == shifted).all()


# Windows


@pytest.mark.parametrize("size", [(96, 64), (97, 61), (8, 8), (131, 250)])
def test_the_whole_picture_is_painted_pixel_for_pixel(size):
    picture = noise(*size)
    window = Window.whole(*size, multiple=8)
    cut = window.cut(picture)
    assert cut.shape[0] % 8 == cut.shape[1] % 8 == 0
    assert (cut[: size[1], : size[0]] == picture).all()
    assert (window.put(np.zeros_like(picture), cut) == picture).all()


@pytest.mark.parametrize("place", [(5, 5), (390, 300), (200, 10)])
def test_only_the_masked_region(place):
    mask = np.zeros((333, 415), np.float32)
    cv2.circle(mask, place, 9, 1.0, -1)
    window = Window.around(mask, padding=16, area=128 * 128, multiple=8)
    assert window.size[0] % 8 == window.size[1] % 8 == 0
    assert window.size[0] * window.size[1] == pytest.approx(128 * 128, rel=0.2)
    inside = np.zeros_like(mask)
    inside[window.top : window.top + window.height, window.left : window.left + window.width] = 1
    assert (inside[mask > 0] == 1).all()
    assert 0 <= window.left <= window.left + window.width <= 415
    assert 0 <= window.top <= window.top + window.height <= 333
    picture = noise(415, 333)
    done = window.put(picture, noise(*window.size, seed=2))
    assert (done[inside == 0] == picture[inside == 0]).all()


def test_a_thin_stroke_survives_a_window_that_shrinks():
    mask = np.zeros((800, 800), np.float32)
    cv2.line(mask, (20, 50), (780, 700), 1.0, 1)
    window = Window.around(mask, padding=8, area=64 * 64, multiple=8)
    hole = window.cut_hole(mask)
    assert hole.shape == window.size[::-1]
    crossed = window.cut(np.repeat((mask * 255).astype(np.uint8)[:, :, None], 3, axis=2)).mean(axis=2) > 12
    assert (hole[crossed] > 0).all()


def test_a_picture_grows_on_the_sides_asked_for_and_keeps_its_own_hole():
    picture, hole = noise(40, 30), np.zeros((30, 40), np.float32)
    hole[3, 5] = 0.5
    wider, mask = extend(picture, hole, (16, 0, 8, 4))
    assert wider.shape == (34, 64, 3)
    assert (wider[:30, 16:56] == picture).all()
    assert (mask[:30, 16:56] == hole).all()
    assert mask.sum() == 34 * 64 - 30 * 40 + 0.5
    assert (wider[:30, :16] == picture[:, :1]).all()


# Bad input


@pytest.fixture
def saved(tmp_path):
    def save(image, name="mask.png"):
        Image.fromarray(image).save(tmp_path / name)
        return tmp_path / name

    return save


def read(path, size=(96, 64), invert=False):
    said = []
    return read_mask(path, size, invert=invert, say=said.append), said


def test_masks_of_all_kinds(saved):
    grey = (disc() * 255).astype(np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    clear = np.dstack([noise(96, 64), 255 - grey])
    for image in (grey, colour, clear):
        mask, said = read(saved(image))
        assert (mask == disc()).all()
        assert bool(said) == (image is clear)
    assert (read(saved(255 - grey), invert=True)[0] == disc()).all()
    opaque, said = read(saved(np.dstack([colour, np.full_like(grey, 255)])))
    assert (opaque == disc()).all()
    assert not said
    half = (disc() * 128).astype(np.uint8)
    assert read(saved(half))[0].max() == pytest.approx(128 / 255)


def test_an_inverted_mask_is_said(saved):
    mask, said = read(saved((255 - disc() * 255).astype(np.uint8)))
    assert (mask == 1 - disc()).all()
    assert "pass --invert-mask" in said[0]
    assert not read(saved((disc() * 255).astype(np.uint8)))[1]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((64, 96), np.uint8), "nothing is white"),
        (np.full((64, 96), 255, np.uint8), "all of it is white"),
        (np.full((64, 97), 255, np.uint8), "is 97x64, the picture is 96x64"),
    ],
)
def test_what_cannot_be_meant_is_one_line(saved, mask, words):
    with pytest.raises(RequestError, match=words) as reason:
        read(saved(mask))
    assert len(str(reason.value).splitlines()) == 1


def test_one_pixel_is_a_mask(saved):
    mask = np.zeros((64, 96), np.uint8)
    mask[10, 20] = 255
    assert read(saved(mask))[0].sum() == 1
