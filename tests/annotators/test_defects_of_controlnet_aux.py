"""What controlnet_aux 0.0.10 gets wrong, each held against what ours does instead."""

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from annotators import ANNOTATORS, auxiliary
from annotators.contract import resize_map
from tests.conftest import draw_photo

PHOTO = draw_photo(7, 128, 64)

IMPORT_OURS = """
    from annotators import ANNOTATORS, auxiliary
    import numpy as np
    detectors = ["hed", "pidi.model", "teed.ted", "lineart", "lineart_anime", "mlsd.utils", "normalbae.nets.NNET"]
    for name in detectors + ["midas.midas.dpt_depth", "zoe", "segment_anything", "open_pose", "util"]:
        auxiliary.module(name)
    import sys
    print("OURS", "mediapipe" in sys.modules, "controlnet_aux" in sys.modules)
"""


@pytest.fixture
def newer_mediapipe(tmp_path):
    """A mediapipe as it is since 0.10.30: there is no `solutions` in it."""
    package = tmp_path / "mediapipe"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.2.2'\n")
    return tmp_path


def run(code, folder):
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], text=True, capture_output=True)


def test_a_mediapipe_without_solutions_does_not_matter(newer_mediapipe):
    """Defect 1: `import controlnet_aux` dies of it."""
    theirs = run("import controlnet_aux", newer_mediapipe)
    assert "no attribute 'solutions'" in theirs.stderr
    ours = run(IMPORT_OURS, newer_mediapipe)
    assert ours.stdout.strip().endswith("OURS False False"), ours.stderr


def test_who_imports_controlnet_aux_after_us_gets_all_of_it(tmp_path):
    done = run(
        """
        from annotators import auxiliary
        hed = auxiliary.module("hed")
        import controlnet_aux
        assert controlnet_aux.CannyDetector and controlnet_aux.hed.HEDdetector
        assert auxiliary.module("hed") is hed and "controlnet_aux.midas" in sys.modules
        print("fine")
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_parameters_do_not_leak_into_the_next_annotator():
    """Defect 4: `Processor` writes them into its module's defaults."""
    assert ANNOTATORS.create("softedge", safe=True, resolution=9).safe
    fresh = ANNOTATORS.create("softedge")
    assert (fresh.safe, fresh.resolution) == (False, 512)
    with pytest.raises(AttributeError):
        fresh.safe = True


@pytest.fixture
def saved_on_a_gpu(tmp_path, monkeypatch, weights_of):
    """The files of an annotator as somebody with a GPU saved them."""

    def copy(type_name, backend):
        for path in weights_of(type_name, backend).rglob("*.p*"):
            target = tmp_path / path.name
            with monkeypatch.context() as patch:
                patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
                torch.save(torch.load(path, weights_only=True), target)
        return tmp_path

    return copy


@pytest.mark.skipif(torch.cuda.is_available(), reason="the library fails only where there is no GPU")
@pytest.mark.parametrize(
    ("type_name", "backend", "name", "cls"),
    [
        ("softedge", "pidinet", "pidi", "PidiNetDetector"),
        ("lineart", "anime", "lineart_anime", "LineartAnimeDetector"),
        ("mlsd", "default", "mlsd", "MLSDdetector"),
    ],
)
def test_weights_saved_on_a_gpu_load_without_one(type_name, backend, name, cls, saved_on_a_gpu, make):
    """Defect 5: `torch.load` without `map_location`."""
    folder = saved_on_a_gpu(type_name, backend)
    with pytest.raises(RuntimeError, match="CUDA"):
        getattr(auxiliary.module(name), cls).from_pretrained(str(folder))
    ours = ANNOTATORS.create(type_name, backend, weights=str(folder), resolution=64, device="cpu")
    assert np.array_equal(ours(PHOTO), make(type_name, backend)(PHOTO))


def test_a_network_stays_on_the_device_that_was_named(monkeypatch, weights_of):
    """Defect 5: SAM moves itself to CUDA whenever there is one, and has no `.to`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = ANNOTATORS.create(
        "segmentation", "sam", model="vit_t", points=1, weights=str(weights_of("segmentation", "sam")), device="cpu"
    )
    assert named.torch_device() == "cpu"
    assert {each.device.type for each in named.network.predictor.model.parameters()} == {"cpu"}
    assert ANNOTATORS.create("segmentation", "sam").torch_device() == "cuda"


def test_what_goes_wrong_in_mlsd_is_raised(make, monkeypatch):
    """Defect 6: the library swallows every exception and returns black."""

    def broken(*_):
        raise RuntimeError("out of memory")

    library = auxiliary.module("mlsd.utils")
    monkeypatch.setattr(library, "deccode_output_score_and_ptss", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        make("mlsd", "default")(PHOTO)


def test_a_picture_without_lines_is_black_because_there_are_none(make):
    """Defect 6: in the library that is an IndexError, swallowed like all others."""
    assert not make("mlsd", "default", score=1.0)(PHOTO).any()


def test_constant_depth_is_black(make, monkeypatch, recwarn):
    """Defect 6: MiDaS divides by its maximum; all of one depth gives NaN."""
    for backend in ("midas", "depth-anything"):
        annotator = make("depth", backend)
        monkeypatch.setattr(type(annotator), "forward", lambda self, net, pixels: torch.ones_like(pixels[:, :1]))
        assert not annotator(PHOTO).any()
        assert np.isfinite(annotator.depth(PHOTO)).all()
    assert not [each for each in recwarn if "invalid value" in str(each.message)]


@pytest.mark.parametrize(
    ("type_name", "backend"),
    [("softedge", "hed"), ("softedge", "teed"), ("lineart", "standard"), ("lineart", "realistic"), ("mlsd", "default")],
)
def test_every_map_has_its_pictures_size(type_name, backend, make):
    """Defect 7: some give the picture's size, the others a multiple of 64."""
    photo = draw_photo(1, 101, 75)
    assert make(type_name, backend)(photo).shape == photo.shape
    if (type_name, backend) == ("softedge", "hed"):
        hed = auxiliary.module("hed")
        theirs = hed.HEDdetector(hed.ControlNetHED_Apache2())(photo, detect_resolution=64, output_type="np")
        assert theirs.shape != photo.shape


@pytest.mark.parametrize("type_name", ["canny", "grey"])
def test_a_map_on_disk_is_the_map(type_name, photo):
    """Defect 8: `Processor(to_pil=False)` gives JPEG, whose pixels are others."""
    from controlkit.data.ledger import Entry, encode_map

    annotator = ANNOTATORS.create(type_name)
    made = annotator(photo)
    written = encode_map(made, Entry.of(type_name, annotator, "0" * 64), annotator.values)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(written)).convert("RGB")), made)
    lossy = io.BytesIO()
    Image.fromarray(made).save(lossy, format="JPEG")
    assert not np.array_equal(np.asarray(Image.open(lossy)), made)


@pytest.mark.parametrize("size", [(768, 1024), (512, 512), (300, 200)])
def test_edges_are_black_and_white_at_any_size(size):
    """The library detects at 512 pixels and enlarges the map linearly: almost all its edges are grey."""
    photo = draw_photo(1, *size)
    theirs = auxiliary.module("canny").CannyDetector()(photo, image_resolution=768, output_type="np")
    grey = ((theirs > 0) & (theirs < 255)).sum() / (theirs > 0).sum()
    assert grey > 0.9
    ours = ANNOTATORS.create("canny")(photo)
    for made in (ours, resize_map(ours, 768, 1024, ANNOTATORS["canny"].values)):
        assert set(np.unique(made)) == {0, 255}
