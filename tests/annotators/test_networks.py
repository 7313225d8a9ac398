"""Each network against a direct call of the library that owns it, and how networks are loaded."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from annotators import ANNOTATORS, MissingWeights, auxiliary
from annotators.contract import annotate_many
from annotators.dense import load_pickle
from tests.annotators import random_weights
from tests.conftest import draw_photo

# The library rounds the sides to 64; at such a size it sees the picture that our network sees.
PHOTO = draw_photo(7, 128, 64)


def detector(name, cls, folder, **options):
    """A detector of controlnet_aux with weights from a folder, asked at the picture's own size."""
    made = getattr(auxiliary.module(name), cls).from_pretrained(str(folder), **options)
    return lambda image, **asked: np.asarray(
        made(image, detect_resolution=image.shape[0], output_type="np", **asked), dtype=np.uint8
    )


@pytest.mark.parametrize(
    ("type_name", "backend", "name", "cls", "options", "asked"),
    [
        ("softedge", "hed", "hed", "HEDdetector", {}, {}),
        ("softedge", "hed", "hed", "HEDdetector", {"safe": True}, {"safe": True}),
        ("softedge", "pidinet", "pidi", "PidiNetDetector", {}, {}),
        ("softedge", "pidinet", "pidi", "PidiNetDetector", {"safe": True}, {"safe": True}),
        ("softedge", "teed", "teed", "TEEDdetector", {}, {"safe_steps": 0}),
        ("scribble", "hed", "hed", "HEDdetector", {}, {"scribble": True}),
        ("scribble", "pidinet", "pidi", "PidiNetDetector", {}, {"scribble": True}),
        ("lineart", "realistic", "lineart", "LineartDetector", {}, {}),
        ("lineart", "realistic", "lineart", "LineartDetector", {"coarse": True}, {"coarse": True}),
        ("mlsd", "default", "mlsd", "MLSDdetector", {}, {}),
        ("mlsd", "default", "mlsd", "MLSDdetector", {"score": 0.463, "length": 1.3}, {"thr_v": 0.463, "thr_d": 1.3}),
        ("normal", "bae", "normalbae", "NormalBaeDetector", {}, {}),
        ("depth", "midas", "midas", "MidasDetector", {}, {}),
        pytest.param("depth", "zoe", "zoe", "ZoeDetector", {}, {}, marks=pytest.mark.slow),
    ],
)
def test_the_map_is_the_librarys_map(type_name, backend, name, cls, options, asked, make, weights_of):
    """Within one level: the library makes integers of the parts, we of their sum."""
    named = {"filename": "5_model.pth"} if backend == "teed" else {}
    asked = asked if backend == "teed" else {"image_resolution": 64, **asked}
    theirs = detector(name, cls, weights_of(type_name, backend), **named)(PHOTO, **asked)
    ours = make(type_name, backend, **options)(PHOTO)
    assert len(np.unique(ours)) > 1
    different = np.abs(ours.astype(int) - theirs) > 1
    assert different.mean() < (0.002 if options.get("safe") else 1e-9)  # three levels, of which a rounding picks one


def test_anime_lines_are_the_librarys_at_the_size_that_its_network_takes(make, weights_of):
    """Within two levels: it cuts off fractions of the dark lines, we of the bright ones."""
    photo = draw_photo(7, 256, 256)
    theirs = detector("lineart_anime", "LineartAnimeDetector", weights_of("lineart", "anime"))
    ours = make("lineart", "anime", resolution=256)(photo)
    assert np.abs(ours.astype(int) - theirs(photo, image_resolution=256)).max() <= 2
    assert len(np.unique(ours)) > 100


def test_sam_finds_the_librarys_objects(make, weights_of):
    """The same partition; which colours it gets is chance there, and follows from the sizes here."""
    library = auxiliary.module("segment_anything")
    network = library.sam_model_registry["vit_t"]()
    network.load_state_dict(torch.load(weights_of("segmentation", "sam") / "checkpoints" / "mobile_sam.pth"))
    theirs = library.SamDetector(library.SamAutomaticMaskGenerator(network, points_per_side=2))
    colours = theirs(PHOTO, detect_resolution=64, image_resolution=64, output_type="np")
    ours = make("segmentation", "sam")(PHOTO)
    pairs = np.concatenate([ours, colours], axis=2).reshape(-1, 6)
    kinds = [len(np.unique(each, axis=0)) for each in (pairs, pairs[:, :3], pairs[:, 3:])]
    assert kinds[0] == kinds[1] == kinds[2] > 1


def direct_depth(model, folder, photo):
    """Through the preprocessor and the postprocessor of transformers."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    size = {"height": photo.shape[0], "width": photo.shape[1]}
    with torch.inference_mode():
        answer = model(**processor(images=photo, size=size, return_tensors="pt"))
    return processor.post_process_depth_estimation(answer, target_sizes=[photo.shape[:2]])[0]["predicted_depth"]


def test_depth_anything_is_the_direct_call_of_transformers(make, weights_of):
    from transformers import AutoModelForDepthEstimation

    folder, photo = weights_of("depth", "depth-anything"), draw_photo(7, 140, 70)
    depth = direct_depth(AutoModelForDepthEstimation.from_pretrained(folder), folder, photo).numpy()
    annotator = make("depth", "depth-anything")
    assert np.allclose(annotator.depth(photo), depth, rtol=1e-3, atol=1e-5)
    levels = 255 * (depth - depth.min()) / (depth.max() - depth.min())
    assert np.abs(annotator(photo)[:, :, 1] - levels).max() <= 2
    assert len(np.unique(annotator(photo))) > 50


def test_a_metric_model_is_inverted(tmp_path):
    """It answers in metres, and near is bright: the order of any two pixels turns round."""
    torch.manual_seed(1)
    random_weights.depth_anything(tmp_path, depth_estimation_type="metric", max_depth=10)
    annotator = ANNOTATORS.create("depth", weights=str(tmp_path), resolution=70, device="cpu")
    photo = draw_photo(7, 140, 70)
    metres = annotator.rasters([photo])[0][:, :, 0]
    assert np.allclose(annotator.depth(photo), 1 / metres, rtol=1e-5)
    plain = ANNOTATORS.create("depth", weights=str(tmp_path), resolution=70, device="cpu", metric="no")
    assert np.array_equal(plain.depth(photo), metres)


def test_segmentation_is_the_direct_call_of_transformers(make, weights_of):
    from transformers import AutoImageProcessor, UperNetForSemanticSegmentation

    folder = weights_of("segmentation", "ade20k")
    processor, model = (
        AutoImageProcessor.from_pretrained(folder),
        UperNetForSemanticSegmentation.from_pretrained(folder),
    )
    with torch.inference_mode():
        answer = model(**processor(images=PHOTO, size={"height": 64, "width": 128}, return_tensors="pt"))
    classes = processor.post_process_semantic_segmentation(answer, target_sizes=[(64, 128)])[0].numpy()
    colours = np.array(auxiliary.module("util").ade_palette(), np.uint8)[classes]
    ours = make("segmentation", "ade20k")(PHOTO)
    assert (ours != colours).any(axis=2).mean() < 0.002  # classes of equal score
    assert len(np.unique(classes)) > 5


def test_the_levels_of_the_palette_are_those_that_segmentation_declares():
    palette = auxiliary.module("util").ade_palette()
    assert len(palette) == 150
    assert {level for colour in palette for level in colour} == ANNOTATORS["segmentation"].values


def test_segmentation_with_other_classes_is_refused(tmp_path):
    random_weights.upernet(tmp_path, classes=19)
    with pytest.raises(ValueError, match="expected the 150 classes of ADE20K, it has 19"):
        ANNOTATORS.create("segmentation", weights=str(tmp_path), device="cpu")(PHOTO)


@pytest.mark.parametrize("backend", ["depth-anything", "midas"])
def test_near_is_bright_in_8_and_16_bits(backend, make):
    from annotators.depth import to_map

    annotator = make("depth", backend)
    nearness = annotator.depth(PHOTO)
    assert nearness.dtype == np.float32
    assert nearness.shape == PHOTO.shape[:2]
    fine = to_map(nearness, bits=16)
    assert fine.dtype == np.uint16
    assert (fine.min(), fine.max()) == (0, 65535)
    assert fine.argmax() == nearness.argmax()
    assert np.array_equal(annotator(PHOTO)[:, :, 0], to_map(nearness))
    assert np.abs(fine / 257 - to_map(nearness)).max() <= 1
    with pytest.raises(ValueError, match="bits=12: expected 8 or 16"):
        to_map(nearness, bits=12)


def test_a_network_whose_numbers_are_not_finite_is_refused():
    from annotators.depth import to_map

    with pytest.raises(ValueError, match="not finite"):
        to_map(np.array([[0, np.nan]], np.float32))


def test_batches_go_through_the_network_together(make, monkeypatch):
    """Four pictures of two sizes: two calls."""
    annotator, calls = make("softedge", "teed"), []
    forward = type(annotator).forward
    monkeypatch.setattr(
        type(annotator), "forward", lambda self, net, pixels: calls.append(len(pixels)) or forward(self, net, pixels)
    )
    annotate_many(annotator, [draw_photo(1), draw_photo(2, 50, 40), draw_photo(3), draw_photo(4, 50, 40)])
    assert calls == [2, 2]


def test_a_network_is_loaded_at_the_first_picture_and_once(weights_of, monkeypatch):
    loads = []
    cls = ANNOTATORS.class_of("softedge", "teed")
    load = cls.load
    monkeypatch.setattr(cls, "load", lambda self: loads.append(1) or load(self))
    annotator = ANNOTATORS.create("softedge", "teed", weights=str(weights_of("softedge", "teed")), resolution=64)
    annotator.libraries()
    assert not loads
    annotator(PHOTO)
    annotator(PHOTO)
    assert len(loads) == 1


def test_a_copy_for_another_process_leaves_the_network_behind(make):
    annotator = make("softedge", "hed")
    before = annotator(PHOTO)
    sent = pickle.dumps(annotator)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent)(PHOTO), before)


def test_the_weights_are_part_of_the_ledger_and_their_place_is_not(tmp_path, weights_of):
    folder = weights_of("softedge", "teed")
    first = ANNOTATORS.create("softedge", "teed", weights=str(folder))
    moved = tmp_path / "any name.pth"
    moved.write_bytes((folder / "5_model.pth").read_bytes())
    assert first.libraries() == ANNOTATORS.create("softedge", "teed", weights=str(moved)).libraries()
    torch.manual_seed(5)
    random_weights.teed(tmp_path)
    assert first.libraries() != ANNOTATORS.create("softedge", "teed", weights=str(tmp_path)).libraries()


@pytest.mark.parametrize(
    ("type_name", "backend"), [key for key in random_weights.WRITERS if key[0] not in ("depth", "segmentation")]
)
def test_missing_weights_are_refused_in_one_sentence(type_name, backend, tmp_path):
    """Which file, from where, how large, under which licence, and what gets it."""
    annotator = ANNOTATORS.create(type_name, backend, offline=True)
    for work in (lambda: annotator(PHOTO), annotator.libraries, annotator.ready):
        with pytest.raises(MissingWeights) as reason:
            work()
        said, wanted = str(reason.value), annotator.wanted()[0]
        assert "\n" not in said
        for words in (wanted.file, wanted.repo, f"{wanted.megabytes:g} MB", wanted.licence, "controlkit fetch"):
            assert words in said
    with pytest.raises(MissingWeights, match=f"{tmp_path.name} has no {annotator.wanted()[0].file}"):
        ANNOTATORS.create(type_name, backend, weights=str(tmp_path))(PHOTO)


def test_the_advice_names_the_backend_where_it_is_not_the_default():
    for backend, advice in (("hed", "`controlkit fetch softedge`"), ("teed", "`controlkit fetch softedge=teed`")):
        with pytest.raises(MissingWeights, match=advice):
            ANNOTATORS.create("softedge", backend, offline=True)(PHOTO)
    with pytest.raises(MissingWeights, match="`controlkit fetch some/one`"):
        ANNOTATORS.create("softedge", weights="some/one", offline=True)(PHOTO)


def test_a_name_that_is_neither_path_nor_hub_id_is_refused():
    with pytest.raises(MissingWeights, match="weights='nowhere': no such file or folder, and no hub id"):
        ANNOTATORS.create("softedge", weights="nowhere")(PHOTO)


def test_a_model_without_its_config_is_refused(tmp_path, weights_of):
    whole = weights_of("depth", "depth-anything")
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    with pytest.raises(MissingWeights, match=r"has no config\.json"):
        ANNOTATORS.create("depth", weights=str(tmp_path))(PHOTO)


def test_weights_of_another_network_are_refused(weights_of):
    path = weights_of("softedge", "teed") / "5_model.pth"
    with pytest.raises(ValueError, match="not the weights of ControlNetHED_Apache2") as reason:
        ANNOTATORS.create("softedge", "hed", weights=str(path))(PHOTO)
    assert "\n" not in str(reason.value)


class Bomb:
    """What it is unpickled as would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="expected a PyTorch checkpoint of tensors alone"):
        ANNOTATORS.create("softedge", "pidinet", weights=str(tmp_path / "weights.pth"))(PHOTO)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    for content in (b"", b"<html>not found</html>"):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(ValueError, match="expected a PyTorch checkpoint"):
            load_pickle(tmp_path / "weights.pth")


def test_a_network_sees_the_picture_undistorted(make, monkeypatch):
    """A circle stays one, whatever the sides are rounded to: the library's 64 make 640 x 480 3 % too wide."""
    seen = []
    annotator = make("softedge", "hed", resolution=100)
    monkeypatch.setattr(
        type(annotator), "forward", lambda self, net, pixels: seen.append(pixels) or pixels.mean(1, keepdim=True) / 255
    )
    disc = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(disc, (320, 240), 200, (255, 255, 255), -1)
    annotator(disc)
    inside = seen[0][0, 0, :100, :133].numpy() > 127
    assert abs(np.ptp(np.where(inside.any(1))) - np.ptp(np.where(inside.any(0)))) <= 1
