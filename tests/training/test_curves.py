"""The picture of the curves: what is drawn, where, and axes that can be read."""

import numpy as np
import pytest

from controlkit.training.curves import _EVENT, _GREY, _ORANGE, PANEL, WIDTH, draw_curves, nice_ticks, panels_of


def gain(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 8}


def made_up(steps=200, *, looks=True, fidelity=True, event=True):
    rows = [{"step": step, "loss": 0.3 + 0.1 * np.cos(step), "grad_norm": 1.0, "lr": 1e-5} for step in range(1, steps)]
    for step in range(20, steps, 20) if looks else ():
        share = 0.3 / (1 + np.exp(-(step - 100) / 10))
        rows.append({"step": step, "held_out_loss": 0.3 * (1 - share), "held_out_loss_silent": 0.3,
                     "control_gain_share": gain(share), "map_gain_share": gain(0.9 * share)})  # fmt: skip
    for step in (100, 200) if fidelity else ():
        score = {"metric": "canny_f1_1px", **gain(0.2 + step / 400), "chance": 0.2, "real": 0.98}
        rows.append({"step": step, "fidelity": score})
    return [*rows, {"step": 120, "event": "control acquired", "since": 100}] if event else rows


def test_every_panel_has_what_the_run_measured():
    loss, gains, fidelity = panels_of(made_up())
    assert [curve.label for curve in loss.curves] == ["training", "held out, without control", "held out"]
    assert len(gains.curves) == 2
    assert [curve.label for curve in fidelity.curves] == ["real pictures", "chance", "samples"]
    assert draw_curves(made_up()).shape[1] == WIDTH
    assert len(panels_of(made_up(looks=False, fidelity=False))) == 1
    assert draw_curves([]) is None


def test_each_of_several_types_has_a_curve_of_its_own():
    rows = made_up(fidelity=False)
    for row in rows:
        if "map_gain_share" in row:
            of_each = {"canny": 0.3, "depth": 0.1}
            row["by_type"] = {type: {"map_gain_share": gain(mean)} for type, mean in of_each.items()}
    *_, alone = panels_of(rows)
    assert [(curve.label, set(curve.y)) for curve in alone.curves] == [("canny", {0.3}), ("depth", {0.1})]
    assert draw_curves(rows).shape[0] > draw_curves(made_up(fidelity=False)).shape[0]


def test_the_event_stands_at_its_step():
    """Its colour appears in the picture with the event alone, in the middle of the axis for the middle of the run."""

    def columns(image):
        return np.flatnonzero(
            (np.abs(image.astype(int) - _EVENT).max(axis=2) < 8)[PANEL + 60 : PANEL + 200].any(axis=0)
        )

    with_event, without = columns(draw_curves(made_up())), columns(draw_curves(made_up(event=False)))
    assert len(without) == 0
    assert with_event.mean() == pytest.approx((72 + WIDTH - 24) / 2, abs=3)


def test_what_the_first_samples_stand_beside_is_seen():
    """A dashed line of one point would be none."""
    rows = [
        {"step": 1, "loss": 0.3},
        {"step": 1, "fidelity": {"metric": "canny_f1_1px", **gain(0.5), "chance": 0.2, "real": 0.9}},
    ]
    image = draw_curves(rows).astype(int)
    for colour in (_ORANGE, _GREY):
        assert (np.abs(image[PANEL + 40 :] - colour).max(axis=2) == 0).sum() > 20


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, 0.5)], [(1, 0.0), (2, 0.0)]])
def test_short_and_flat_runs_are_drawn_too(points):
    image = draw_curves([{"step": step, "loss": loss} for step, loss in points])
    assert (image != 255).any()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.29), (-0.4, 0.02), (0, 130), (5, 5), (0, 0), (1e-7, 2e-7)])
def test_ticks_are_round_and_hold_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert np.diff(ticks) == pytest.approx(np.full(len(ticks) - 1, ticks[1] - ticks[0]))
