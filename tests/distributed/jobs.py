"""Real jobs of several ranks, which mpiexec starts, and a run that they make."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments, write_text

FAULTY = Path(__file__).with_name("faulty.py")
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
    "spikes__window": 32,
    "spikes__min_history": 16,
}


def job(n_ranks: int, *arguments: object, threads: int = 1, **faults: Sequence) -> subprocess.CompletedProcess:
    """Run `npllm ARGUMENTS` on so many ranks, and wait for its end. faults: see
    faulty.py."""
    return subprocess.run(
        [MPIEXEC, "-n", str(n_ranks), *words_of(faults), *map(str, arguments)],
        env=ENVIRONMENT | {"NUMBA_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def words_of(faults: dict[str, Sequence]) -> list[str]:
    """Words that start npllm, with faults of faulty.py if there are any."""
    return [sys.executable, str(FAULTY), json.dumps(faults)] if faults else NPLLM


def poisoned_text(folder: Path) -> Path:
    """Write a text that has one "#", which stands in one sample of the run of SETTINGS.
    It is in the last, uneven micro-batch of update 50, which the last rank computes."""
    path = write_text(folder, n_lines=400)
    lines = path.read_text().splitlines(keepends=True)
    lines[41] = lines[41].replace(".", "#")
    path.write_text("".join(lines))
    return path


def arguments_of(text: Path, out: Path, **changes: object) -> list[str]:
    """Words of `npllm pretrain` for the run of SETTINGS."""
    return pretrain_arguments(text, out, **SETTINGS | changes)
