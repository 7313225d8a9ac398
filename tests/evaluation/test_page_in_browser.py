"""The report as people see it: in a browser, at the width of a desk and of a phone, without a network."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from controlkit.evaluation.evaluate import Answer, Case, Question
from controlkit.evaluation.report import render
from controlkit.evaluation.scores import Score
from tests.conftest import draw_photo

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1280, 390)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page():
    """Twelve rows under names and prompts as long as real ones."""
    rows = ("control", "no_control", "chance", "vae", "real")
    metrics = ("canny_f1_1px", "canny_f1_exact", "canny_ssim")
    each = {metric: {row: 0.1 * place for place, row in enumerate(rows, 1)} for metric in metrics}
    scores = {metric: {row: Score(mean, mean - 0.1, mean + 0.1, 12) for row, mean in found.items()}
              for metric, found in each.items()}  # fmt: skip
    cases = [Case(number, "c", "a big red ball " * 12, each, {}, number) for number in range(12)]
    question = Question(controlnet="/data/models/" + "a_long_name_" * 12, data="/data/pictures")
    judge = {"type": "canny", "backend": "cv2", "parameters": {"low": 100, "high": 200}}
    answer = Answer(question, metrics[0], False, judge, {}, scores, Score(0.8, 0.7, 0.9, 12), cases)
    stated = {
        "fid": {"weights": "/data/weights/" + "a_long_name_" * 12, "sha256": "0123456789abcdef" * 4, "of": [1, 2]}
    }
    answer = replace(answer, stated=stated, warnings=("fid over 12 pictures, fewer than 10000",))

    def pictures(case):
        wanted, found = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
        wanted[:, 20:24], found[20:24] = 255, 255
        photo = draw_photo(case.number, 64, 64)
        return {"map": wanted, "painted": photo, "read from it": found, "without control": photo, "real": photo}

    return render(answer, pictures)


def browse(file, *arguments):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={file.parent / 'profile'}"]
    done = subprocess.run(
        [BROWSER, *flags, *arguments, file.as_uri()], text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_fits_the_window_and_shows_all_pictures(page, tmp_path):
    """Nothing but the tables scrolls sideways, and these are no wider than the window."""
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in WIDTHS)
    measure = """<script>addEventListener("load", () => {
      const frames = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument, images = [...page.images];
        return {window: frame.clientWidth, page: page.documentElement.scrollWidth,
                seen: images.filter(image => image.naturalWidth > 0).length, images: images.length}; });
      document.body.innerHTML = "<output>" + JSON.stringify(frames) + "</output>"; })</script>"""
    file = tmp_path / "frames.html"
    file.write_text(f"<!doctype html><body>{frames}{measure}</body>", encoding="utf-8")
    found = json.loads(re.search(r"<output>(.*)</output>", browse(file, "--dump-dom"))[1])
    assert [each["window"] for each in found] == list(WIDTHS)
    for each in found:
        assert each["page"] <= each["window"]
        assert each["seen"] == each["images"] == 12 * 6


def test_what_is_on_the_screen(page, tmp_path):
    """The overlays, red for the map and cyan for what was read, and the bars of both histograms."""
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(page, encoding="utf-8")
    browse(file, f"--screenshot={shot}", "--window-size=1280,2400")
    seen = np.asarray(Image.open(shot).convert("RGB"))
    assert seen.shape == (2400, 1280, 3)
    for colour in ((255, 0, 0), (0, 255, 255)):
        assert (seen == colour).all(axis=2).sum() > 1000
    assert len(np.unique(seen.astype(int) @ [1 << 16, 1 << 8, 1])) > 500  # colours
