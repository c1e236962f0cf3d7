"""The plots: the content of the figures, read from their artists."""

import sys

import pytest

pytest.importorskip("matplotlib")

from npllm.report.plots import (  # noqa: E402
    DemoCurve,
    RunHistory,
    draw_if_possible,
    loss_figure,
    plot_loss,
    plot_spike_demo,
    spike_figure,
)

METRICS = [
    {"step": step, "tokens": step * 1_000_000, "loss": 5.0 - 0.1 * step, **({"val_loss": 4.0} if step == 10 else {})}
    for step in range(1, 21)
]
ROLLBACK = {
    "event": "rollback",
    "step": 13,
    "loss": 4.5,
    "tokens": 12_000_000,
    "samples": [1200, 1300],
    "restored_step": 10,
    "skipped": [1000, 1428],
}


def marks(events: list[dict]) -> tuple[list, list, list[str]]:
    """The marks of the loss plot: crosses, ends of arrows (from, to), and labels."""
    (axes,) = loss_figure(RunHistory(METRICS, events)).axes
    crosses = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "x"]
    arrows = [(tuple(text.xyann), tuple(text.xy)) for text in axes.texts if text.arrow_patch]
    return crosses, arrows, [text.get_text() for text in axes.texts if text.get_text()]


def test_the_loss_of_a_quiet_run():
    figure = loss_figure(RunHistory(METRICS, []))
    training, validation = figure.axes[0].lines
    assert training.get_xydata().tolist() == [[step, 5.0 - 0.1 * step] for step in range(1, 21)]
    assert validation.get_xydata().tolist() == [[10, 4.0]]
    assert marks([]) == ([], [], [])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training, each step", "validation sample"]


def test_a_rollback_is_a_cross_an_arrow_to_the_checkpoint_and_the_range_skipped():
    crosses, arrows, labels = marks([ROLLBACK])
    assert crosses == [[12.0, 4.5]]
    assert arrows == [((12.0, 4.5), (10.0, 4.0))]
    assert labels == ["skipped samples 1,000–1,427"]


def test_every_rollback_is_shown_and_the_legend_says_it_once():
    history = RunHistory(METRICS, [ROLLBACK, ROLLBACK | {"tokens": 17_000_000}])
    assert [cross[0] for cross in marks(history.events)[0]] == [12.0, 17.0]
    assert len(loss_figure(history).legends[0].get_texts()) == 3


@pytest.mark.parametrize("loss", [None, 1e9])
def test_a_loss_beyond_the_curve_is_at_its_top(loss):
    assert marks([ROLLBACK | {"loss": loss}])[0] == [[12.0, 4.9]]


def test_a_rollback_to_the_very_beginning():
    assert marks([ROLLBACK | {"restored_step": 0}])[1] == [((12.0, 4.5), (1.0, 4.9))]


def test_giving_up_is_a_cross_alone_and_a_refused_checkpoint_nothing():
    gave_up = {name: value for name, value in ROLLBACK.items() if name not in ("restored_step", "skipped")}
    refused = {"event": "refused", "checkpoint": "step-00000010.h5", "reason": "damaged"}
    assert marks([gave_up | {"event": "gave_up"}, refused]) == ([[12.0, 4.5]], [], [])


def demo_curves() -> list[DemoCurve]:
    made = [(step, 2.0) for step in range(200)]
    rolled_back = DemoCurve("a", made, [(100, 2.1), (101, 6.0)], [ROLLBACK | {"step": 102, "restored_step": 99}])
    return [rolled_back, DemoCurve("b", made, [(101, 5.0)], []), DemoCurve("c", made, [], [])]


def test_the_demo_shows_the_poison_what_was_lost_and_the_way_back():
    (axes,) = spike_figure(demo_curves(), (100, 110)).axes
    assert axes.get_xlim() == (60, 190)
    assert (axes.patches[0].get_x(), axes.patches[0].get_width()) == (100, 10)
    lost = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert lost == [[[100, 2.1], [101, 6.0]], [[101, 5.0]]]
    (arrow,) = [text for text in axes.texts if text.arrow_patch]
    assert (arrow.xyann, arrow.xy) == ((101, 6.0), (99, 2.0))
    assert [text.get_text() for text in axes.texts if text.get_text()] == [
        "back to step 99,\nskipping samples 1,000–1,427"
    ]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[1:4] == ["a", "b", "c"]


def test_a_smoothed_loss_looks_back_only():
    curves = demo_curves()
    made = [(step, 7.0 if step == 120 else 2.0) for step in range(200)]
    (axes,) = spike_figure([*curves[:2], curves[2]._replace(made=made)], (100, 110)).axes
    (line,) = [line for line in axes.lines if line.get_label() == "c"]
    smoothed = dict(line.get_xydata().tolist())
    assert smoothed[119] == 2.0
    assert smoothed[120] == smoothed[124] == 3.0  # a fifth of the 5 too much
    assert smoothed[125] == 2.0


def test_they_are_written_as_png(tmp_path):
    plot_loss(RunHistory(METRICS, [ROLLBACK]), tmp_path / "loss.png")
    plot_spike_demo(demo_curves(), (100, 110), tmp_path / "spike.png")
    for name in ("loss.png", "spike.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_plot_is_announced_or_the_reason_why_there_is_none(tmp_path, monkeypatch):
    def line():
        return draw_if_possible("loss plot", path, lambda: plot_loss(RunHistory(METRICS, []), path))

    path = tmp_path / "loss.png"
    assert line() == f"Loss plot: {path}"
    path = tmp_path / "absent" / "loss.png"
    assert line().startswith(f"No loss plot: {path} cannot be written (No such file or directory)")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert line() == "No loss plot: it needs matplotlib (pip install 'npllm[plot]')."
