"""`benchmarks gemm`: matrix products of training, compared with OpenBLAS.

It runs with one thread and with all, and with bfloat16 factors too. A layer of N rows
has a weight W, (in, out). The forward is x @ W, and the two gradients are dx = dy @ W.T
and dW = x.T @ dy. The head's weight is (V, C), so its products have other transposes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import geometric_mean, median
from typing import NamedTuple

import numba
import numpy as np
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.checks import TOLERANCE, check_close
from benchmarks.configs import Config
from benchmarks.tables import Row, build_table, build_tables, say_where_we_lose
from benchmarks.timing import SHORT_PAUSE, interleave, spread, timed, times_faster
from npllm.kernels.bfloat16 import rounded, widen
from npllm.kernels.gemm import matmul


class Layer(NamedTuple):
    """A weight. transposed: whether it is stored as (out, in)."""

    name: str
    n_in: int
    n_out: int
    transposed: bool = False


def layers_of(config: Config) -> list[Layer]:
    """Return the layers of one block, and the head."""
    C, F, V = config.model.n_embd, config.model.mlp_width, config.model.vocab_size
    return [
        Layer("qkv", C, 3 * C),
        Layer("out", C, C),
        Layer("up", C, F),
        Layer("down", F, C),
        Layer("head", C, V, transposed=True),
    ]


def products_of(layer: Layer, n_rows: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return product -> (a, b, array for a @ b).

    The products are the forward and the two gradients.
    """
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    x, dy, stored = normal(n_rows, layer.n_in), normal(n_rows, layer.n_out), normal(layer.n_in, layer.n_out)
    weight = stored
    if layer.transposed:
        stored = np.ascontiguousarray(stored.T)
        weight = stored.T
    dweight = (dy.T, x) if layer.transposed else (x.T, dy)
    operands = {"forward": (x, weight), "dx": (dy, weight.T), "dW": dweight}
    return {name: (a, b, np.empty((len(a), b.shape[1]), np.float32)) for name, (a, b) in operands.items()}


def measure(configs: dict[str, Config], rounds: int) -> list[Row]:
    """Return a row for each configuration, layer, product and number of threads.

    A wrong product stops the benchmark.
    """
    return [
        {"config": name, "layer": layer.name, "product": product, **row}
        for name, config in configs.items()
        for layer in layers_of(config)
        for product, arrays in products_of(layer, config.n_tokens).items()
        for row in measure_product(*arrays, rounds)
    ]


def measure_product(a: np.ndarray, b: np.ndarray, out: np.ndarray, rounds: int) -> list[Row]:
    """Return a row for each number of threads."""
    half_a, half_b, name = rounded(a), rounded(b), f"{a.shape} @ {b.shape}"
    check_close(name, (matmul(a, b, out),), (a @ b,), TOLERANCE["float32"])
    check_close(f"bf16 {name}", (matmul(half_a, half_b, out),), (widen(half_a) @ widen(half_b),), TOLERANCE["float32"])
    rows = []
    for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
        with limited_to(threads):
            runners = {
                "npllm": timed(partial(matmul, a, b, out)),
                "bf16": timed(partial(matmul, half_a, half_b, out)),
                "blas": timed(partial(np.matmul, a, b, out=out)),
            }
            seconds = interleave(runners, rounds, SHORT_PAUSE)
        gflop = 2e-9 * a.shape[0] * a.shape[1] * b.shape[1]
        rows.append(
            {
                "shape": f"{a.shape[0]}×{a.shape[1]}×{b.shape[1]}",
                "threads": threads,
                "npllm_gflops": gflop / median(seconds["npllm"]),
                "bf16_gflops": gflop / median(seconds["bf16"]),
                "blas_gflops": gflop / median(seconds["blas"]),
                "spread": spread(seconds["npllm"]),
                "ratio": times_faster(seconds["npllm"], seconds["blas"]),
                "bf16_ratio": times_faster(seconds["bf16"], seconds["blas"]),
            }
        )
    return rows


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Limit the threads of Numba and of the BLAS."""
    numba.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


def summarise(rows: list[Row]) -> list[Row]:
    """Return geometric means of the ratios, by number of threads and product."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        for product in (row["product"], "all"):
            groups.setdefault((row["threads"], product), []).append(row)
    return [
        {"threads": threads, "product": product}
        | {ratio: geometric_mean(row[ratio] for row in group) for ratio in ("ratio", "bf16_ratio")}
        for (threads, product), group in sorted(groups.items())
    ]


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print: every product, then the geometric means."""
    ratio = {"npllm is faster": ("ratio", "{:.2f}×"), "bf16 is faster": ("bf16_ratio", "{:.2f}×")}
    products = {
        "layer": ("layer", "{}"),
        "product": ("product", "{}"),
        "M×K×N": ("shape", "{}"),
        "npllm GFLOP/s": ("npllm_gflops", "{:.0f}"),
        "bf16": ("bf16_gflops", "{:.0f}"),
        "OpenBLAS": ("blas_gflops", "{:.0f}"),
        "spread": ("spread", "±{:.0%}"),
    }
    means = {"threads": ("threads", "{:d}"), "product": ("product", "{}")}
    rows = [row | {"pool": f"threads: {row['threads']}"} for row in rows]
    return [
        *build_tables("products beside OpenBLAS's in float32", rows, products | ratio, by=("config", "pool")),
        build_table("geometric means", summarise(rows), means | ratio),
    ]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say where npllm loses."""
    lost = sum(row["ratio"] < 1.0 for row in rows)
    means = [(f"{row['product']}, {row['threads']} threads, geometric mean", row["ratio"]) for row in summarise(rows)]
    return [f"npllm is slower than OpenBLAS in {lost} of {len(rows)} products.", *say_where_we_lose(means)]
