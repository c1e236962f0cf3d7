"""Runs the gradient tests against one mutant, in a process of its own.

The process is a fork of one that has imported NumPy, Numba, pytest and what else the
tests need from outside this repository. So a trial costs the import of `npllm` and the
tests themselves. The mutant never touches a file: an import hook gives its source to
Python in place of the module's own.

The kernels run as plain Python (NUMBA_DISABLE_JIT), because compiling one of them takes
longer than all tests of a mutant. Three things make that fast enough. The property
tests draw fewer and only small examples and do not simplify a failure; arrays are
compared along two random directions each; NumPy's BLAS multiplies the matrices. All
three make the tests weaker: what is killed here, the whole tests kill too.

Two things take the place of the large examples. The chunks and tiles in which the
kernels cut their work have a few rows each, so small arrays have several of them and a
remainder, and the same ones on every CPU. And new memory holds NaN, as it does in
tests/kernels/test_kernel_memory.py, so a result that is not written is seen.
"""

import importlib.abc
import importlib.util
import os
import resource
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ |= {"NUMBA_DISABLE_JIT": "1", "NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}

import h5py  # noqa: E402, F401
import hypothesis  # noqa: E402
import llvmlite.binding  # noqa: E402
import numba  # noqa: E402, F401
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import regex  # noqa: E402, F401
import rich.console  # noqa: E402, F401
import tyro  # noqa: E402, F401
from mutation.mutants import Mutant, Target  # noqa: E402

# Constants of npllm/kernels. The tile is that of a CPU without vector instructions.
SMALL_PIECES = {"ELEMENTS": 8, "CHUNK_ROWS": 4, "CHUNK_BYTES": 0, "MIN_CHUNK_ROWS": 3, "GROUP": 3}
EXAMPLES, DIRECTIONS = 6, 2  # of the tests of kernels
LEAST_SECONDS, TIMES_LONGER = 20, 5  # processor time that a trial may take, beside the tests without a mutation
SURVIVED, KILLED = 0, 1  # exit codes of pytest: all tests passed; one failed
NEVER_JUDGED = 3, 4, 5  # an error of pytest, wrong arguments, no test chosen


class Verdict(NamedTuple):
    """What became of a mutant; None stands for the code as it is.

    survived: all tests passed. seconds: processor time. output: what pytest printed.
    """

    mutant: Mutant | None
    target: Target
    survived: bool
    seconds: float
    output: str


def verdicts(root: Path, todo: Iterable[tuple[Mutant | None, Target, float]], jobs: int) -> Iterator[Verdict]:
    """Try the mutants, `jobs` at a time, and yield the verdicts as they come.

    todo: mutant or None, target, and the processor time that its tests take without a
    mutation, in seconds. Raises ValueError if pytest cannot run the tests.
    """
    running, todo = {}, iter(todo)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            for mutant, target, usual in todo:
                log = Path(folder) / f"{mutant.number if mutant else 0}-{target.file.replace('/', '-')}"
                running[_start(root, mutant, target, usual, log)] = mutant, target, log
                if len(running) == jobs:
                    break
            if not running:
                return
            process, status, usage = os.wait4(-1, 0)
            mutant, target, log = running.pop(process)
            code, output = os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
            if code in NEVER_JUDGED:
                raise ValueError(f"pytest cannot run the tests of {target.file} (exit code {code}):\n{output}")
            seconds = usage.ru_utime + usage.ru_stime
            yield Verdict(mutant, target, code == SURVIVED, seconds, output)


def _start(root: Path, mutant: Mutant | None, target: Target, usual: float, log: Path) -> int:
    """Return the number of a new process that tries the mutant."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = KILLED
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        limit = round(LEAST_SECONDS + TIMES_LONGER * usual)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # an endless loop ends here, by a signal
        code = _judge(root, mutant, target)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _judge(root: Path, mutant: Mutant | None, target: Target) -> int:
    """Run the tests, and return pytest's exit code."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    if mutant:
        sys.meta_path.insert(0, MutantFinder(root, mutant))
    of_kernels = "/kernels/" in target.file
    if of_kernels:
        np.empty = empty_of_nan
        llvmlite.binding.get_host_cpu_features = dict
    chosen = ["-k", target.chosen] if target.chosen else []
    quiet = ["-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-m", "not long"]
    return pytest.main([*quiet, *chosen, *target.tests], plugins=[Setting(of_kernels)])


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from the mutant's source, and no other."""

    def __init__(self, root: Path, mutant: Mutant):
        self.path, self.source = root / mutant.target.file, mutant.source
        self.name = mutant.target.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self.path))

    def get_source(self, name: str) -> str:
        return self.source

    def get_code(self, name: str):
        return compile(self.source, self.path, "exec")


class Setting:
    """A plugin of pytest that makes the tests fast enough for hundreds of runs."""

    def __init__(self, of_kernels: bool):
        self.of_kernels = of_kernels

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self):
        """Set how examples are drawn, before the tests are imported."""
        usual, phases = hypothesis.settings.default, [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        if self.of_kernels:
            usual, phases = hypothesis.settings(usual, max_examples=EXAMPLES), phases[1:]
        hypothesis.settings.register_profile("trial", usual, phases=phases, report_multiple_bugs=False)
        hypothesis.settings.load_profile("trial")

    def pytest_collection_finish(self):
        """Cut the kernels' work into small pieces."""
        if not self.of_kernels:
            return
        import gradient_check

        import npllm.kernels
        from npllm.kernels.gemm import set_gemm

        gradient_check.N_DIRECTIONS = DIRECTIONS
        gradient_check.check_gradients.__kwdefaults__["elementwise_up_to"] = 0
        set_gemm("blas")
        for name, module in list(sys.modules.items()):
            if name.startswith(npllm.kernels.__name__):
                for constant in SMALL_PIECES.keys() & vars(module).keys():
                    setattr(module, constant, SMALL_PIECES[constant])


_numpy_empty = np.empty


def empty_of_nan(shape, dtype=float, **options) -> np.ndarray:
    """Return what np.empty returns, with NaN in it, or 77 where it holds integers."""
    array = _numpy_empty(shape, dtype, **options)
    if array.dtype.kind in "fiu":
        array.fill(np.nan if array.dtype.kind == "f" else 77)
    return array
