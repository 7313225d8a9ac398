"""Where the figures of a run go beside metrics.jsonl."""

from importlib.util import find_spec

import pytest

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.errors import RequestError
from controlkit.training import reports
from controlkit.training.config import TrainConfig
from controlkit.training.reports import check_report_to, figures, make_reports
from controlkit.training.run import Run
from tests.training.test_train import SETTINGS


def test_every_number_of_a_line_has_a_name():
    row = {
        "step": 3,
        "loss": 0.5,
        "event": "x",
        "gain": {"mean": 0.1, "n": 8},
        "diagnosis": ["y"],
        "zeros": {"a": {"b": 2}},
    }
    assert dict(figures(row)) == {"loss": 0.5, "gain/mean": 0.1, "gain/n": 8, "zeros/a/b": 2}


def test_all_that_is_written_to_the_metrics_is_reported(tmp_path):
    run = Run(build(TrainConfig, None, [f"output={tmp_path / 'run'}"]), (), resume=False)
    seen = []
    run.reports = [seen.append]
    run.append("metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
    run.append("timing.jsonl", [{"step": 2, "seconds": 1}])
    assert seen == run.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_place_that_is_not_installed_is_refused_before_anything_is_loaded(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=f"report_to={name}: {name} is not installed: pip install {name}"):
        check_report_to(name)
    with pytest.raises(RequestError, match="is not installed"):
        check_report_to("all")
    assert main(["train", f"output={tmp_path / 'run'}", f"report_to={name}"]) == 2
    assert "is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_needed_by_default(monkeypatch, tmp_path):
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    assert make_reports("auto", tmp_path, 0, {}) == []
    assert make_reports("none", tmp_path, 0, {}) == []


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_has_the_losses_and_the_looks(dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS, "watch.every=2", "-q"]
    assert main(["train", *arguments]) == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [each.step for each in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [each.step for each in events.Scalars("map_gain_share/mean")] == [2, 4]


@pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed")
def test_wandb_takes_the_lines_offline(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = [
        f"data.path={dataset}",
        f"output={tmp_path / 'run'}",
        *SETTINGS,
        "watch.every=2",
        "report_to=wandb",
        "-q",
    ]
    assert main(["train", *arguments]) == 0
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
