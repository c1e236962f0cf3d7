"""A roofline plot: every rung, and the limits of memory and arithmetic.

Source: Williams, Waterman & Patterson, "Roofline: an insightful visual performance
model for multicore architectures", 2009.
"""

from pathlib import Path

import numpy as np

from benchmarks.ladder.climb import KERNEL, NUMPY, PARALLEL, PLAIN, PYTHON, TORCH
from benchmarks.tables import Row

STYLES = {  # marker, colour
    PYTHON: ("v", "#999999"),
    PLAIN: ("s", "#56b4e9"),
    PARALLEL: ("D", "#0072b2"),
    NUMPY: ("o", "#e69f00"),
    TORCH: ("^", "#d55e00"),
    KERNEL: ("*", "#009e73"),
}


def plot(rows: list[Row], peak: float, bandwidth: float, path: Path) -> None:
    """Write the plot as a PNG. rows: those of `climb`.

    peak: operations per second. bandwidth: bytes per second.
    """
    from matplotlib.figure import Figure  # an optional dependency, and slow to import

    rows = [row for row in rows if row["ns_per_element"] is None]
    intensities = {row["operation"]: row["flops_per_byte"] for row in rows}
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    x = np.geomspace(min(intensities.values()) / 2, max(intensities.values()) * 2, 200)
    roof = np.minimum(peak, bandwidth * x) / 1e9
    axes.loglog(x, roof, color="black", label=f"roof: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s")
    for rung, (marker, colour) in STYLES.items():
        points = [(row["flops_per_byte"], row["gflops"]) for row in rows if row["rung"] == rung]
        if points:
            size = 13 if marker == "*" else 7
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=size, label=rung, clip_on=False)
    lowest = min(row["gflops"] for row in rows)
    axes.set_ylim(lowest / 80, peak / 1e9 * 2)
    for place, (operation, intensity) in enumerate(sorted(intensities.items(), key=lambda item: item[1])):
        axes.axvline(intensity, color="#dddddd", linewidth=0.8, zorder=0)
        side = "left" if place % 2 else "right"  # neighbours may be close
        axes.text(intensity, lowest / 60, operation, rotation=90, ha=side, va="bottom", fontsize=9)
    axes.set_xlim(x[0], x[-1])
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
