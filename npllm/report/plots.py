"""Pictures of a run."""

import io
from pathlib import Path
from typing import Any

from npllm.atomic import write_atomically


def plot_loss(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss against tokens from the lines of metrics.jsonl into a PNG."""
    from matplotlib.figure import Figure  # an optional dependency, and slow to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    tokens = [record["tokens"] / 1e6 for record in metrics]
    axes.plot(
        tokens, [record["loss"] for record in metrics], color="#9bb7d4", linewidth=0.8, label="training, each step"
    )
    validated = [record for record in metrics if "val_loss" in record]
    axes.plot(
        [record["tokens"] / 1e6 for record in validated],
        [record["val_loss"] for record in validated],
        color="#c0392b",
        marker="o",
        markersize=3,
        label="validation sample",
    )
    axes.set_xlabel("tokens trained on, millions")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getbuffer())
