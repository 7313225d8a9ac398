"""`controlkit evaluate`: every row of the report means what it says, and what was painted is not painted again."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.data.rows import held_out, read_dataset
from controlkit.diffusion.samplers import make_sampler
from controlkit.evaluation.evaluate import Answer, Case, Question, obedience
from controlkit.evaluation.metrics import edge_f1
from controlkit.evaluation.report import compare, overlay, render, worst_first
from controlkit.evaluation.scores import Score, paired_share
from controlkit.files import atomic_write_bytes
from controlkit.generation.settings import encode_picture
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.forked import run_two
from tests.painting import strong_net


@pytest.fixture(scope="session")
def net(tmp_path_factory):
    return strong_net("random-sd15", tmp_path_factory.mktemp("judged") / "net")


def arguments(net, dataset, out, *more):
    common = ["--base", "random-sd15", "--controlnet", net, "--data", dataset, "--out", out]
    return [str(each) for each in [*common, "--num", 3, "--steps", 2, "--cfg", 3, "--sampler", "ddim", "-q", *more]]


def evaluate(*given, code=0):
    assert main(["evaluate", *arguments(*given)]) == code


def scores_of(out):
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="session")
def report(net, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    evaluate(net, dataset, out)
    return out


def test_the_rows_mean_what_they_say(report, dataset):
    found = scores_of(report)
    rows = read_dataset(dataset, "canny")[:3]
    assert found["metric"] == "canny_f1_1px"
    assert [case["content"] for case in found["cases"]] == [row.content for row in rows]
    assert list(found["scores"]) == ["canny_f1_1px", "canny_f1_exact", "canny_ssim"]
    leading = found["scores"]["canny_f1_1px"]
    assert set(leading) == {"control", "no_control", "chance", "vae", "real"}
    assert leading["real"]["mean"] > 0.8 > leading["chance"]["mean"]
    for metric, scores in found["scores"].items():
        for name, score in scores.items():
            values = [case["scores"][metric][name] for case in found["cases"]]
            assert score["mean"] == pytest.approx(np.mean(values), abs=1e-6)
            assert score["n"] == 3
    assert json.loads((report / "scores.json").read_text()) == found["scores"]
    case = found["cases"][1]
    painted = read_picture(report / case["files"]["control"])
    wanted = read_picture(rows[1].control)
    assert painted.shape == wanted.shape
    score = edge_f1(ANNOTATORS.create("canny")(painted), wanted)
    assert case["scores"]["canny_f1_1px"]["control"] == pytest.approx(score, abs=1e-6)


def test_no_control_is_the_base_alone(report, dataset):
    base = find_base("random-sd15")
    pipeline = StableDiffusionPipeline.from_pretrained(base.folder, safety_checker=None)
    pipeline.scheduler = make_sampler("ddim", base.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    row = read_dataset(dataset, "canny")[2]
    expected = pipeline(
        row.caption, num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(2),
        width=base.native_size, height=base.native_size, output_type="np",
    ).images[0]  # fmt: skip
    without = read_picture(report / scores_of(report)["cases"][2]["files"]["no_control"])
    assert (without == (expected * 255).round().astype(np.uint8)).all()
    control = read_picture(report / scores_of(report)["cases"][2]["files"]["control"])
    assert (without != control).any()


def test_what_is_there_is_not_painted_again_and_what_is_missing_is(report, net, dataset):
    before = scores_of(report)
    pictures = sorted((report / "pictures").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in pictures}
    pictures[1].unlink()
    pictures[2].write_bytes(pictures[2].read_bytes()[:50])
    evaluate(net, dataset, report)
    assert scores_of(report) == before
    changed = {path for path in pictures if path.stat().st_mtime_ns != stamps[path]}
    assert changed == {pictures[1], pictures[2]}


def test_other_settings_paint_anew(report, net, dataset, tmp_path):
    out = tmp_path / "other"
    evaluate(net, dataset, out)
    evaluate(net, dataset, out, "--weight", "0.5")
    halved, whole = (scores_of(each)["cases"][0]["files"]["control"] for each in (out, report))
    assert (read_picture(out / halved) != read_picture(report / whole)).any()


def test_two_processes_agree_with_one(report, net, dataset, tmp_path):
    done = run_two("evaluate", *arguments(net, dataset, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    ours, theirs = scores_of(report), scores_of(tmp_path / "two")
    assert (ours["processes"], theirs["processes"]) == (1, 2)
    assert ours["scores"] == theirs["scores"]
    assert ours["cases"] == theirs["cases"]


def test_pictures_painted_together_are_those_painted_alone(report, net, dataset, tmp_path):
    """But for rounding; where one of a batch is missing, the batch is painted again and that one is written."""
    evaluate(net, dataset, tmp_path, "--batch-size", "2")
    cases = scores_of(tmp_path)["cases"]
    for alone, together in zip(scores_of(report)["cases"], cases, strict=True):
        for row in ("control", "no_control"):
            pair = [read_picture(out / case["files"][row]) for out, case in ((report, alone), (tmp_path, together))]
            assert np.abs(np.subtract(*pair, dtype=int)).max() <= 1
    written = [tmp_path / cases[number]["files"]["control"] for number in range(3)]
    stamps = [path.stat().st_mtime_ns for path in written]
    before = written[1].read_bytes()
    written[1].unlink()
    evaluate(net, dataset, tmp_path, "--batch-size", "2")
    assert written[1].read_bytes() == before
    changed = [path.stat().st_mtime_ns != stamp for path, stamp in zip(written, stamps, strict=True)]
    assert changed == [False, True, False]
    assert scores_of(tmp_path)["cases"] == cases


def test_held_out_rows_alone(net, dataset, tmp_path):
    rows = read_dataset(dataset, "canny")
    share = 0.5
    kept = [row.content for row in rows if held_out(row.content, share)][:3]
    evaluate(net, dataset, tmp_path / "out", "--held-out", share, "--steps", "1")
    assert [case["content"] for case in scores_of(tmp_path / "out")["cases"]] == kept


def pictures_judged(folder, dataset, out, *more, code=0):
    given = ["--pictures", folder, "--data", dataset, "--out", out, *more]
    assert main(["evaluate", *map(str, given), "-q"]) == code


def test_pictures_of_others_are_scored_by_name(dataset, tmp_path, capsys):
    """The real pictures follow their maps; those under the next one's name do not."""
    (tmp_path / "same").mkdir()
    (tmp_path / "next").mkdir()
    for number in range(4):
        picture = (dataset / f"{number:03d}.png").read_bytes()
        (tmp_path / "same" / f"{number:03d}.png").write_bytes(picture)
        (tmp_path / "next" / f"{(number + 1) % 4:03d}.png").write_bytes(picture)
    pictures_judged(f"canny={tmp_path / 'same'}", dataset, tmp_path / "a")
    pictures_judged(f"canny={tmp_path / 'next'}", dataset, tmp_path / "b")
    same, other = scores_of(tmp_path / "a"), scores_of(tmp_path / "b")
    assert same["scores"]["canny_f1_exact"]["control"]["mean"] == 1
    assert same["scores"]["canny_f1_1px"]["real"] == same["scores"]["canny_f1_1px"]["control"]
    assert set(same["scores"]["canny_f1_1px"]) == {"control", "chance", "real"}
    assert len(same["cases"]) == 4
    assert other["scores"]["canny_f1_1px"]["control"]["mean"] < 0.8
    page = (tmp_path / "a" / "index.html").read_text()
    assert page.count("<img") == 4 * 5
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a'} is better")


def test_pictures_are_known_by_the_map_in_their_settings(dataset, tmp_path):
    """Under any name; the evaluation of what `generate` painted is that of the same files under the rows' names."""
    for number, name in enumerate(("z.png", "a.png", "m.png")):
        digest = hashlib.sha256((dataset / f"conditions/canny/{number:03d}.png.png").read_bytes()).hexdigest()
        settings = {"controls": [{"type": "canny", "sha256": digest}]}
        atomic_write_bytes(tmp_path / "made" / name, encode_picture(draw_photo(number, 64, 64), settings))
    atomic_write_bytes(tmp_path / "made" / "strange.png", encode_picture(draw_photo(9, 64, 64), {}))
    pictures_judged(f"canny={tmp_path / 'made'}", dataset, tmp_path / "out")
    found = scores_of(tmp_path / "out")
    assert [(case["number"], Path(case["files"]["control"]).name) for case in found["cases"]] == [
        (0, "z.png"), (1, "a.png"), (2, "m.png"),
    ]  # fmt: skip
    assert found["scores"]["canny_f1_exact"]["control"]["mean"] == 1


def test_pictures_that_cannot_be_scored_are_one_line(dataset, tmp_path, capsys):
    atomic_write_bytes(tmp_path / "made" / "000.png", encode_picture(draw_photo(0, 64, 64), {}))
    for folder, more, words in [
        (f"canny={tmp_path / 'made'}", [], "1 of its pictures belong to rows of the dataset; expected at least 2"),
        (tmp_path / "made", [], "expected the type of the maps too, e.g. --pictures canny="),
        (f"canny={tmp_path / 'nowhere'}", [], "there is no such folder"),
        (f"canny={tmp_path / 'made'}", ["--steps", "3"], "leave out --steps"),
        (f"canny={tmp_path / 'made'}", ["--controlnet", "net"], "either --controlnet NET or --pictures"),
    ]:
        pictures_judged(folder, dataset, tmp_path / "out", *more, code=2)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out" / "scores.json").exists()


# The figures


METRIC = "canny_f1_1px"


def cases_of(**values):
    return [
        Case(number, f"c{number}", "a <b> ball", {METRIC: {row: each[number] for row, each in values.items()}})
        for number in range(len(values["control"]))
    ]


def answer_of(**values):
    cases = cases_of(**values)
    question = Question(controlnet="net", data="d")
    judge = {"type": "canny", "backend": "cv2", "parameters": {}}
    scores = {METRIC: {row: Score.of_values(each) for row, each in values.items()}}
    return Answer(question, METRIC, False, judge, {}, scores, obedience(cases, METRIC), cases)


def test_obedience_is_the_share_of_the_way():
    random = np.random.default_rng(0)
    without, vae = random.uniform(0.1, 0.3, 200), random.uniform(0.7, 0.9, 200)
    found = obedience(cases_of(control=without + 0.8 * (vae - without), no_control=without, vae=vae), METRIC)
    assert found.mean == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((0.8, 0.8))
    none = obedience(cases_of(control=without, no_control=without, vae=vae), METRIC)
    assert none.mean == 0
    errors = obedience(cases_of(control=1 - vae, no_control=1 - without, vae=1 - vae), METRIC)  # where lower is better
    assert errors.mean == pytest.approx(1)
    assert obedience(cases_of(control=vae, no_control=without, vae=without), METRIC) is None


def test_the_interval_of_a_share_holds_what_it_says():
    """Of many experiments about 95 in 100 have the true share in their interval."""
    random, inside = np.random.default_rng(1), 0
    for _ in range(100):
        whole = random.normal(1, 0.3, 60)
        share = paired_share(0.7 * whole + random.normal(0, 0.2, 60), whole)
        inside += share.low <= 0.7 <= share.high
    assert 86 <= inside <= 100


def test_comparing_tells_a_difference_from_noise():
    random = np.random.default_rng(0)
    base = random.uniform(0.2, 0.6, 100)
    one, better, same = (
        json.loads(json.dumps(answer_of(control=list(values)).to_json(), default=str))
        for values in (base, base + 0.05 + random.normal(0, 0.05, 100), base + random.normal(0, 0.05, 100))
    )
    assert compare(one, better)["better"] == 1
    assert compare(better, one)["better"] == 0
    assert compare(better, one)["difference"].mean == pytest.approx(0.05, abs=0.02)
    assert compare(one, same)["better"] is None
    for report in (one, better):
        report["lower_is_better"] = True
    assert compare(one, better)["better"] == 0
    with pytest.raises(ValueError, match="expected one measure for both"):
        compare(one, {**better, "metric": "depth_rmse"})


def test_compare_on_the_command_line(report, capsys, tmp_path):
    assert main(["evaluate", "--compare", str(report), str(report / "report.json")]) == 0
    assert capsys.readouterr().out.startswith("no difference that is more than chance: +0.0000 canny_f1_1px")
    assert main(["evaluate", "--compare", str(report), str(tmp_path)]) == 2
    assert "no report.json that can be read" in capsys.readouterr().err


# The page


def test_the_page_stands_alone(report):
    page = (report / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert "http" not in page
    assert "@import" not in page
    assert page.count("<img") == 3 * 6


def test_the_worst_stand_first_and_text_is_escaped():
    answer = answer_of(control=[0.5, 0.1, 0.9], no_control=[0.1, 0.1, 0.1], vae=[1.0, 1.0, 1.0])
    assert [case.number for case in worst_first(answer)] == [1, 0, 2]
    assert [case.number for case in worst_first(replace(answer, lower_is_better=True))] == [2, 0, 1]
    page = render(answer, lambda case: dict.fromkeys(("map", "read from it"), np.zeros((8, 8, 3), np.uint8)))
    assert page.index("row 1<") < page.index("row 0<") < page.index("row 2<")
    assert "a &lt;b&gt; ball" in page
    assert "<b> ball" not in page
    assert "44%" in page  # (1.5 - 0.3) / (3 - 0.3)


def test_an_overlay_is_white_where_both_agree():
    wanted, found = np.zeros((1, 4, 3), np.uint8), np.zeros((1, 4, 3), np.uint8)
    wanted[0, [0, 1]] = 255
    found[0, [0, 2]] = 255
    assert overlay(wanted, found)[0].tolist() == [[255, 255, 255], [255, 0, 0], [0, 255, 255], [0, 0, 0]]


# Bad input


def test_what_cannot_be_asked_is_one_line(net, dataset, tmp_path, capsys):
    untyped = strong_net("random-sd15", tmp_path / "untyped", condition=None)
    shuffled = strong_net("random-sd15", tmp_path / "shuffled", condition="shuffle")
    for given, words in [
        ((untyped, dataset), "does not say what it was trained on; say it: --controlnet canny="),
        ((shuffled, dataset), "has no shuffle maps"),
        ((net, tmp_path / "nowhere"), "there is no such folder"),
    ]:
        evaluate(*given, tmp_path / "out", code=2)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    for more, words in [(["--num", "1"], "expected at least 2 pictures"), (["--held-out", "2"], "expected a share")]:
        evaluate(net, dataset, tmp_path / "out", *more, code=2)
        assert words in capsys.readouterr().err
    assert main(["evaluate", "--data", str(dataset)]) == 2
    assert "expected --data DATASET and either --controlnet NET" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
