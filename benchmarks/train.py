"""`benchmarks train`: whole training steps, both backends in turn."""

from functools import partial
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.timing import interleave, spread
from npllm import GPT, AdamW, ModelConfig
from npllm.training.machine import matmul_peak

CONFIGS = {  # name: sequences per step, model
    "cpu": (12, ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)),
    "default": (8, ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=2048)),
}


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row per configuration and backend."""
    peak = matmul_peak(np.float32)
    return [row for name in CONFIGS for row in _measure_config(name, rounds, peak)]


def _measure_config(name: str, rounds: int, peak: float) -> list[dict[str, Any]]:
    rows, config = CONFIGS[name]
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, config.vocab_size, (2, rows, config.block_size))
    models = {backend: GPT(config, backend=backend) for backend in ("reference", "kernels")}
    losses = {backend: model.loss(x, y) for backend, model in models.items()}
    if abs(losses["kernels"] - losses["reference"]) > 1e-4:
        raise SystemExit(f"{name}: the backends' losses differ ({losses}); nothing was timed.")

    def step(model: GPT, optimizer: AdamW):
        model.loss_and_grad(x, y)
        optimizer.step(grad_clip=1.0)

    functions = {backend: partial(step, model, AdamW(model)) for backend, model in models.items()}
    seconds = interleave(functions, rounds)
    flops = config.flops_per_token(config.block_size) * x.size
    return [
        {
            "config": name,
            "backend": backend,
            "ms": 1e3 * median(times),
            "spread": spread(times),
            "tokens_per_s": x.size / median(times),
            "share_of_peak": flops / median(times) / peak,
            "times_reference": median([a / b for a, b in zip(seconds["reference"], times, strict=True)]),
            "activation_mb": models[backend].arena.peak / 1e6,
        }
        for backend, times in seconds.items()
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a person."""
    result = Table("config", "backend", title="one training step, float32")
    for heading in ("ms", "spread", "tokens/s", "× reference", "% of matmul peak"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row["config"],
            row["backend"],
            f"{row['ms']:.1f}",
            f"±{100 * row['spread']:.0f} %",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['times_reference']:.1f}×",
            f"{100 * row['share_of_peak']:.0f} %",
        )
    return result
