"""Real jobs of several ranks, which mpiexec starts, and a run that they make."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments

SIGNALLING = Path(__file__).with_name("signalling.py")
BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
MPIEXEC = shutil.which("mpiexec", path=BESIDE_PYTHON)
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None, reason="needs mpi4py and mpiexec: pip install 'npllm[mpi]'"
)

# A ramp, whose batches have 3, then 6, then 11 micro-batches, of which the last one is
# not full, and dropout.
SETTINGS = {
    "model__dropout": 0.1,
    "optim__lr": 0.01,
    "batch__size": 21,
    "batch__micro_size": 2,
    "batch__ramp_start": 5,
    "batch__ramp_steps": 40,
    "train__steps": 60,
    "train__checkpoint_every": 20,
    "train__eval_every": 30,
}


def command(n_ranks: int, *arguments: object) -> list[str]:
    """Words that start `npllm ARGUMENTS` on so many ranks."""
    return [MPIEXEC, "-n", str(n_ranks), *NPLLM, *map(str, arguments)]


def job(n_ranks: int, *arguments: object, threads: int = 1, **environment: str) -> subprocess.CompletedProcess:
    """Run `npllm ARGUMENTS` on so many ranks, and wait for its end."""
    return subprocess.run(
        command(n_ranks, *arguments),
        env=ENVIRONMENT | {"NUMBA_NUM_THREADS": str(threads)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def signalled(n_ranks: int, rank: int, update: int, number: int, *arguments: object) -> subprocess.CompletedProcess:
    """Run a job of which one rank gets a signal after an update."""
    words = [SIGNALLING, rank, update, int(number), *arguments]
    return subprocess.run(
        [MPIEXEC, "-n", str(n_ranks), sys.executable, *map(str, words)],
        env=ENVIRONMENT | {"NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def arguments_of(text: Path, out: Path, **changes: object) -> list[str]:
    """Words of `npllm pretrain` for the run of SETTINGS."""
    return pretrain_arguments(text, out, **SETTINGS | changes)
