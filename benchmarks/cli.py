"""The benchmarks' command line."""

import json
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from benchmarks import kernels, train
from benchmarks.timing import machine_facts


def kernels_command(
    *, dtype: Literal["float32", "float64"] = "float32", rounds: int = 15, json: Path | None = None
) -> None:
    """Each kernel beside NumPy's version of the same operation, and beside the machine's peak.

    Args:
        dtype: of the arrays
        rounds: timed calls of each
        json: file to write the figures to as well
    """
    _publish(kernels.measure(dtype, rounds), kernels.table, json)


def train_command(*, rounds: int = 7, json: Path | None = None) -> None:
    """Tokens per second of whole training steps: forward, backward, clipping, AdamW.

    Args:
        rounds: timed steps of each
        json: file to write the figures to as well
    """
    _publish(train.measure(rounds), train.table, json)


def _publish(rows: list[dict[str, Any]], table, path: Path | None) -> None:
    facts = machine_facts()
    console = Console()
    console.print(f"{facts['cpu']}, {facts['cores']} cores, {facts['date']}, numpy {facts['numpy']}", highlight=False)
    console.print(
        f"matmul peak {facts['matmul_gflops']:.0f} GFLOP/s, copy {facts['copy_gb_per_s']:.1f} GB/s", highlight=False
    )
    console.print(table(rows))
    if path is not None:
        path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark."""
    tyro.extras.subcommand_cli_from_dict(
        {"kernels": kernels_command, "train": train_command},
        prog="python -m benchmarks",
        args=arguments,
        use_underscores=True,
    )
    return 0
