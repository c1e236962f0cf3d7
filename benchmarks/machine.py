"""Facts about the machine, and its limits: peak arithmetic and memory bandwidth."""

import os
from datetime import date

import numba
import numpy as np
from threadpoolctl import threadpool_info

from benchmarks.timing import interleave, timed
from npllm.kernels.gemm.instructions import address
from npllm.kernels.gemm.micro_kernel import ZEROS, multiply_tile
from npllm.kernels.gemm.tile import TILE_ROWS, tile_columns
from npllm.training.machine import cpu_model

FMA_DEPTH, FMA_REPEATS = 256, 2000
STREAM_BYTES, STREAM_CHUNKS = 1 << 28, 256  # bytes, more than any cache holds; and chunks


def fma_peak(dtype: str = "float32", rounds: int = 5) -> float:
    """Return the operations per second of all cores when they compute only FMAs.

    The micro-kernel repeats on panels that fit the L1 cache.
    """
    columns = tile_columns(np.dtype(dtype).itemsize)
    shapes = (TILE_ROWS, FMA_DEPTH), (FMA_DEPTH, columns), (TILE_ROWS, columns)
    a, b, c = (np.ones((numba.get_num_threads(), *shape), dtype) for shape in shapes)
    seconds = interleave({"fma": timed(lambda: _repeat_tiles(a, b, c))}, rounds, pause=0.0)["fma"]
    return 2.0 * a.size * columns * FMA_REPEATS / min(seconds)


@numba.njit(parallel=True)
def _repeat_tiles(a, b, c):
    """Compute a tile on each thread.

    a: (threads, rows, depth). b: (threads, depth, columns). c: (threads, rows,
    columns).
    """
    _, depth, columns = b.shape
    for t in numba.prange(len(c)):
        thread, zeros = np.int64(t), address(ZEROS, 0)
        own_a, own_b = address(a, thread * TILE_ROWS * depth), address(b, thread * depth * columns)
        own_c = address(c, thread * TILE_ROWS * columns)
        for _ in range(FMA_REPEATS):
            multiply_tile(c.dtype.type(0.0), own_a, depth, 1, own_b, depth, own_c, columns, zeros, 0, zeros)


def stream_bandwidth(rounds: int = 5) -> float:
    """Return the bytes per second between the memory and all cores.

    It is the better of reading an array and rewriting it in place.
    """
    chunks = np.ones((STREAM_CHUNKS, STREAM_BYTES // 4 // STREAM_CHUNKS), np.float32)
    read, rewrite = timed(lambda: _sum_chunks(chunks)), timed(lambda: _negate_chunks(chunks))
    seconds = interleave({"read": read, "rewrite": rewrite}, rounds, pause=0.0)
    return max(STREAM_BYTES / min(seconds["read"]), 2 * STREAM_BYTES / min(seconds["rewrite"]))


@numba.njit(parallel=True)
def _sum_chunks(chunks):
    totals = np.empty(len(chunks), chunks.dtype)
    for c in numba.prange(len(chunks)):
        totals[c] = _sum(chunks[c])
    return totals


@numba.njit(fastmath={"reassoc", "contract"})
def _sum(chunk):
    total = chunk.dtype.type(0.0)
    for i in range(len(chunk)):
        total += chunk[i]
    return total


@numba.njit(parallel=True)
def _negate_chunks(chunks):
    for c in numba.prange(len(chunks)):
        chunk = chunks[c]
        for i in range(len(chunk)):
            chunk[i] = -chunk[i]


def openblas_kernels() -> str:
    """Return the processor whose kernels OpenBLAS uses, which determines its speed."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return ", ".join(f"{library['internal_api']} {library.get('architecture', '')}" for library in libraries)


def machine_facts(dtype: str = "float32") -> dict[str, str | int | float]:
    """Read and measure the facts now."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": numba.config.NUMBA_NUM_THREADS,
        "date": date.today().isoformat(),
        "numpy": np.__version__,
        "blas": openblas_kernels(),
        "numba": numba.__version__,
        "dtype": dtype,
        "peak_gflops": fma_peak(dtype) / 1e9,
        "stream_gb_per_s": stream_bandwidth() / 1e9,
    }
