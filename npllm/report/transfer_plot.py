"""The plot of a transfer experiment: accuracy against the number of labels."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from npllm.files.atomic import write_atomically

if TYPE_CHECKING:  # an optional dependency, and slow to import
    from matplotlib.figure import Figure

COLORS = ("#1f618d", "#ca6f1e")

# method -> labels per class -> (mean accuracy, half the width of its 95 % interval)
Curves = Mapping[str, Mapping[int, tuple[float, float]]]


def plot_transfer(curves: Curves, chance: float, path: Path) -> None:
    """Draw the curves into a PNG."""
    image = io.BytesIO()
    transfer_figure(curves, chance).savefig(image, format="png", dpi=120)
    write_atomically(path, image.getbuffer())


def transfer_figure(curves: Curves, chance: float) -> "Figure":
    """Return a figure with a line and error bars for each method.

    The axis of labels is logarithmic. chance: the accuracy of guessing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="labels per class", ylabel="accuracy on the test texts", xscale="log")
    for (method, curve), color in zip(curves.items(), COLORS, strict=False):
        means, halves = zip(*curve.values(), strict=True)
        axes.errorbar(list(curve), means, halves, color=color, marker="o", markersize=4, capsize=4, label=method)
    axes.axhline(chance, color="grey", linestyle=":", label="guessing")
    sizes = sorted({labels for curve in curves.values() for labels in curve})
    axes.set_xticks(sizes, [str(labels) for labels in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="mean and its 95 % confidence interval")
    return figure
