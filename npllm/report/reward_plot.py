"""Gold and proxy reward against the distance of the policy from its initial state.

Where the two curves diverge, the policy exploits errors of the proxy. The axis is
sqrt(KL), as in Gao, Schulman & Hilton, "Scaling laws for reward model
overoptimization", 2022.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from npllm.files.atomic import write_atomically

if TYPE_CHECKING:  # an optional dependency, and slow to import
    from matplotlib.figure import Figure

AXIS = "√KL from the fine-tuned model (KL in nats per response)"


class Series(NamedTuple):
    """The curve of one method; arrays are (k,).

    distance: sqrt(KL). gold, proxy: the mean rewards there. fitted: points (x, y) of
    the law that was fitted to the gold rewards.
    """

    label: str
    distance: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray | None = None
    fitted: tuple[np.ndarray, np.ndarray] | None = None


def plot_rewards(panels: Mapping[str, Sequence[Series]], path: Path, *, lines: bool = True) -> None:
    """Draw the panels into a PNG."""
    image = io.BytesIO()
    reward_figure(panels, lines=lines).savefig(image, format="png", dpi=110)
    write_atomically(path, image.getbuffer())


def reward_figure(panels: Mapping[str, Sequence[Series]], *, lines: bool) -> "Figure":
    """Return a figure with one row per panel: gold on the left, proxy on the right.

    panels: title -> curves. lines: join the points of a series.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 + 3.3 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for (title, series), row in zip(panels.items(), grid, strict=True):
        for number, one in enumerate(series):
            style = {"color": f"C{number}", "marker": ".", "markersize": 5, "linewidth": 1 if lines else 0}
            for axes, values in zip(row, (one.gold, one.proxy), strict=True):
                if values is not None:
                    axes.plot(one.distance, values, label=one.label, **style)
            if one.fitted is not None:
                row[0].plot(*one.fitted, color=f"C{number}", linewidth=1.5)
        for axes, name in zip(row, ("gold", "proxy"), strict=True):
            axes.set(title=title, ylabel=f"{name} reward")
            axes.grid(alpha=0.3)
        row[0].legend()
    for axes in grid[-1]:
        axes.set_xlabel(AXIS)
    return figure
