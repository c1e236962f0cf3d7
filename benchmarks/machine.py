"""What the figures were measured on, and the machine's ceilings: arithmetic and memory."""

import os
from datetime import date

import numba
import numpy as np
from threadpoolctl import threadpool_info

from benchmarks.timing import interleave, timed
from npllm.training.machine import cpu_model, matmul_peak

STREAM_BYTES, STREAM_CHUNKS = 1 << 28, 256  # beyond every cache


def peak_flops(dtype: str = "float32") -> float:
    """Operations per second that no computation on all cores can exceed."""
    return matmul_peak(np.dtype(dtype))


def stream_bandwidth(rounds: int = 5) -> float:
    """Bytes per second between the memory and all cores: the best of reading an array and of rewriting it in place."""
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
    """The processor that OpenBLAS thinks it runs on, which decides how fast it is."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return ", ".join(f"{library['internal_api']} {library.get('architecture', '')}" for library in libraries)


def machine_facts(dtype: str = "float32") -> dict[str, str | int | float]:
    """Read and measured now."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": numba.config.NUMBA_NUM_THREADS,
        "date": date.today().isoformat(),
        "numpy": np.__version__,
        "blas": openblas_kernels(),
        "numba": numba.__version__,
        "dtype": dtype,
        "peak_gflops": peak_flops(dtype) / 1e9,
        "stream_gb_per_s": stream_bandwidth() / 1e9,
    }
