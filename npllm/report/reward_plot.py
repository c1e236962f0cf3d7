"""Gold and proxy reward against the distance from where the policy began: where they part, the proxy is fooled."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any


def plot_overoptimisation(
    runs: dict[str, list[dict[str, Any]]], best_of: Sequence[tuple[float, float]], folder: Path
) -> None:
    """Draw overoptimisation.png into the folder.

    runs: for each method the records of its rollouts, with objective/{exact_kl, gold, proxy}. best_of: (KL, gold) of
    best-of-n for growing n. The axis is sqrt(KL), as in Gao, Schulman & Hilton, "Scaling laws for reward model
    overoptimization", 2022.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("gold", "proxy"), strict=True):
        for method, records in runs.items():
            points = [(sqrt(max(r["objective/exact_kl"], 0.0)), r[f"objective/{name}"]) for r in records]
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=method)
        if name == "gold":
            axes.plot([sqrt(kl) for kl, _ in best_of], [gold for _, gold in best_of], "k--o", label="best of n")
        axes.set_xlabel("√KL from the fine-tuned model (KL in nats per response)")
        axes.set_ylabel(f"{name} reward")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "overoptimisation.png", dpi=110)
