"""Plots of a run.

Each has a function that builds the figure and one that writes it as a PNG.
"""

import functools
import io
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npllm.files.atomic import write_atomically

if TYPE_CHECKING:  # an optional dependency, and slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION, SPIKE = "#9bb7d4", "#c0392b", "#d35400"
DEMO = ("#1e8449", "#ca6f1e", "#34495e")
UPDATES_AVERAGED = 5  # in the moving average


def draw_if_possible(what: str, path: Path, draw: Callable[[], None]) -> str:
    """Draw a plot, and return a line for the user: where it is, or why there is none.

    A plot comes with results, which must not be lost with it.
    """
    try:
        draw()
    except ModuleNotFoundError as error:
        missing = str(error.name).startswith("matplotlib")
        reason = "it needs matplotlib (pip install 'npllm[plot]')." if missing else str(error)
    except Exception as error:  # Matplotlib and its many settings raise all kinds
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        return f"{what.capitalize()}: {path}"
    return f"No {what}: {reason}"


class RunHistory(NamedTuple):
    """What a run recorded: the lines of metrics.jsonl and of ledger.jsonl."""

    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]


def plot_loss(history: RunHistory, path: Path) -> None:
    """Draw the loss of a run, with its spikes and rollbacks, into a PNG."""
    _write(loss_figure(history), path)


def loss_figure(history: RunHistory) -> "Figure":
    """Return training and validation loss against tokens, with the loss spikes."""
    figure, axes = _empty_figure("tokens trained on, millions")
    metrics = history.metrics
    tokens, losses = _points(metrics, "loss")
    axes.plot(tokens, losses, color=TRAINING, linewidth=0.8, label="training, each step")
    validated = _points([record for record in metrics if "val_loss" in record], "val_loss")
    axes.plot(*validated, color=VALIDATION, marker="o", markersize=3, label="validation sample")
    _mark_spikes(axes, history)
    figure.legend(loc="outside upper center", ncols=3)  # outside, where it covers no spike
    return figure


def _points(metrics: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [record["tokens"] / 1e6 for record in metrics], [record[name] for record in metrics]


def _mark_spikes(axes: "Axes", history: RunHistory) -> None:
    """Draw a cross for each spike, and an arrow to the restored checkpoint."""
    kept = {record["step"]: (record["tokens"] / 1e6, record["loss"]) for record in history.metrics}
    highest = max((loss for _, loss in kept.values() if isfinite(loss)), default=0.0)
    spikes = [event for event in history.events if "samples" in event]
    for number, event in enumerate(spikes):
        # A loss that is not finite, or above the curve, is drawn at its maximum.
        loss = highest if event["loss"] is None else min(event["loss"], highest)
        spike = event["tokens"] / 1e6, loss
        label = None if number else "loss spike; arrow: back to a checkpoint"
        axes.plot(*spike, color=SPIKE, marker="x", markersize=8, markeredgewidth=2, linestyle="none", label=label)
        restored = event.get("restored_step")
        if restored is None:  # the run gave up
            continue
        left = spike[0] > sum(axes.get_xlim()) / 2  # towards the middle
        _label(axes, spike, f"skipped samples {_range(event['skipped'])}", SPIKE, left=left, row=number % 4)
        # Step 0 has no line, and the line of a step may be missing in an old log.
        _arrow(axes, spike, kept.get(restored) or kept.get(restored + 1), SPIKE)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float] | None, color: str) -> None:
    if end is not None:
        style = {"arrowstyle": "->", "color": color, "linewidth": 1.5, "connectionstyle": "arc3,rad=0.3"}
        axes.annotate("", end, xytext=start, arrowprops=style, zorder=5)


def _label(axes: "Axes", point: tuple[float, float], text: str, color: str, *, left: bool, row: int = 0) -> None:
    """Write text above a point, on one side of it.

    row: 0, 1, ...; different rows keep neighbours from overlapping.
    """
    axes.annotate(
        text,
        point,
        xytext=(-8 if left else 8, 6 + 11 * row),
        textcoords="offset points",
        horizontalalignment="right" if left else "left",
        fontsize=8,
        color=color,
    )


def _range(samples: list[int]) -> str:
    first, end = samples
    return f"{first:,}–{end - 1:,}"


class DemoCurve(NamedTuple):
    """One training run of the spike demo.

    made: (updates before it, loss) of the updates in the final weights, in order. lost:
    those of the batches that were refused or rolled back, in order. rollbacks: events
    of the ledger.
    """

    name: str
    made: list[tuple[int, float]]
    lost: list[tuple[int, float]]
    rollbacks: list[dict[str, Any]]


def plot_spike_demo(curves: list[DemoCurve], poisoned: tuple[int, int], path: Path) -> None:
    """Draw the training runs of the spike demo into a PNG."""
    _write(spike_figure(curves, poisoned), path)


def spike_figure(curves: list[DemoCurve], poisoned: tuple[int, int]) -> "Figure":
    """Return the training loss of each curve around the poisoned batches.

    poisoned: [first, end), the poisoned batches if none is skipped.
    """
    first, end = poisoned
    shown = first - 4 * (end - first), first + 9 * (end - first)
    figure, axes = _empty_figure("updates made")
    axes.axvspan(first, end, color="#f5b7b1", alpha=0.4, linewidth=0, label="poisoned batches, if none is skipped")
    for curve, color in zip(curves, DEMO, strict=True):
        steps, losses = _between(curve.made, *shown)
        axes.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=color, linewidth=2, label=curve.name)
        axes.plot(*_between(curve.lost, *shown), color=color, marker="x", markersize=4, linewidth=0.8, linestyle=":")
    axes.plot([], [], color="grey", marker="x", linestyle=":", label="computed, but not in the final weights")
    axes.set_xlim(*shown)
    for curve, color in zip(curves, DEMO, strict=True):
        for event in curve.rollbacks:
            _mark_way_back(axes, curve, event, color)
    axes.legend(fontsize=9)
    return figure


def _mark_way_back(axes: "Axes", curve: DemoCurve, event: dict[str, Any], color: str) -> None:
    step, restored = event["step"] - 1, event["restored_step"]
    spike, checkpoint = (step, dict(curve.lost)[step]), (restored, dict(curve.made)[restored])
    axes.plot(*checkpoint, color=color, marker="o", markersize=7, zorder=5)
    _arrow(axes, spike, checkpoint, color)
    _label(axes, spike, f"back to step {restored},\nskipping samples {_range(event['skipped'])}", color, left=True)


def _between(points: list[tuple[int, float]], first: int, end: int) -> tuple[list[int], list[float]]:
    inside = [(step, loss) for step, loss in points if first <= step <= end]
    return [step for step, _ in inside], [loss for _, loss in inside]


def _smooth(losses: list[float]) -> list[float]:
    """The mean of each loss and the ones before it, at most UPDATES_AVERAGED in all."""
    return [float(np.mean(losses[max(0, i + 1 - UPDATES_AVERAGED) : i + 1])) for i in range(len(losses))]


def _empty_figure(x_label: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    figure._repr_png_ = functools.partial(_png, figure)  # a notebook shows it as an image
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _write(figure: "Figure", path: Path) -> None:
    write_atomically(path, _png(figure))
