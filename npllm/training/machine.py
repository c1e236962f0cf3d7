"""The machine: its description, its threads, and the dtypes that it can compute."""

import platform
from pathlib import Path

import numba
import numpy as np

import npllm
from npllm.distributed import world
from npllm.errors import ConfigError
from npllm.kernels.gemm.tile import HAS_BFLOAT16_DOT


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(stage: str) -> dict[str, str]:
    """The table [run] of config.toml: stage, versions and processor. Another version or
    processor may give other bits for the same config."""
    packages = {package.__name__: package.__version__ for package in (npllm, np, numba)}
    return {"stage": stage, **packages, "python": platform.python_version(), "cpu": cpu_model()}


def limit_threads(threads: int | None) -> None:
    """Set the number of threads of the kernels; None = one per core, divided between
    the ranks on this machine. Raises ConfigError when the machine offers fewer."""
    if threads is None:
        if (ranks := world().on_this_host) > 1:
            numba.set_num_threads(max(1, numba.config.NUMBA_NUM_THREADS // ranks))
        return
    if not 1 <= threads <= numba.config.NUMBA_NUM_THREADS:
        raise ConfigError(
            f"train.threads is {threads}; set it from 1 to {numba.config.NUMBA_NUM_THREADS} on this machine."
        )
    numba.set_num_threads(threads)


def usable_dtype(dtype: str) -> str:
    """The dtype that a run trains in: train.dtype, but float32 in place of bf16 on a
    CPU without bfloat16 products."""
    return "float32" if dtype == "bf16" and not HAS_BFLOAT16_DOT else dtype
