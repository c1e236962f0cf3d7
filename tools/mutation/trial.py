"""Runs the gradient tests against mutants, each in a process of its own.

pytest imports and collects the tests once. Then it forks for each mutant. The fork
gives the mutated function its new code, and runs the tests that judge it until one
fails. So a trial costs the tests alone, no mutant sees another one, and no file
changes.

Arrays are compared along two random directions each, and a failure is not simplified.
The kernels run as plain Python (NUMBA_DISABLE_JIT), because compiling one of them takes
longer than all tests of a mutant. Their property tests draw fewer and only small
examples, and NumPy's BLAS multiplies the matrices. All this makes the tests weaker:
what is killed here, the whole tests kill too.

Two things take the place of the large examples. The chunks and tiles in which the
kernels cut their work have a few rows each, so small arrays have several of them and a
remainder, and the same ones on every CPU. And new memory holds NaN, as it does in
tests/kernels/test_kernel_memory.py, so a result that is not written is seen.
"""

import gc
import inspect
import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import NamedTuple

os.environ |= {"NUMBA_DISABLE_JIT": "1", "NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}

import hypothesis  # noqa: E402
import llvmlite.binding  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from mutation.mutants import Mutant, Target  # noqa: E402

# Constants of npllm/kernels. The tile is that of a CPU without vector instructions.
SMALL_PIECES = {"ELEMENTS": 8, "CHUNK_ROWS": 4, "CHUNK_BYTES": 0, "MIN_CHUNK_ROWS": 3, "GROUP": 3}
EXAMPLES = 10  # of a test of kernels
DIRECTIONS = 2
LEAST_SECONDS, TIMES_LONGER = 10, 5  # processor time that a mutant may take, beside the tests without a mutation
SURVIVED, KILLED = 0, 1  # exit codes


class Verdict(NamedTuple):
    """What became of a mutant; number 0 stands for the code as it is.

    survived: all tests passed. seconds: processor time. output: of the tests, for 0.
    """

    number: int
    file: str
    survived: bool
    seconds: float
    output: str = ""


def verdicts(root: Path, mutants: list[Mutant], jobs: int) -> Iterator[Verdict]:
    """Try the mutants, `jobs` at a time, and yield the verdicts as they come.

    The first verdicts of each file are those of its tests without a mutation; if they
    fail, no mutant is tried. Raises ValueError if pytest cannot run the tests.
    """
    for of_kernels in (False, True):
        on_trial = [mutant for mutant in mutants if mutant.target.of_kernels == of_kernels]
        if on_trial:
            yield from _in_one_session(root, on_trial, of_kernels, jobs)


def _in_one_session(root: Path, mutants: list[Mutant], of_kernels: bool, jobs: int) -> Iterator[Verdict]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if not process:
        os.close(reading)
        _end_with(lambda: _session(root, Court(mutants, of_kernels, jobs, writing)))
    os.close(writing)
    with os.fdopen(reading) as lines:
        for line in lines:
            yield Verdict(*json.loads(line))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        raise ValueError(f"pytest cannot run the tests of the gradients (exit code {code}); its output is above.")


def _end_with(run) -> None:
    """End this process with the exit code that run() returns."""
    code = KILLED
    try:
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _session(root: Path, court: "Court") -> int:
    """Let pytest collect the tests and hold court. Return its exit code."""
    os.chdir(root)
    if court.of_kernels:
        np.empty = empty_of_nan
        llvmlite.binding.get_host_cpu_features = dict
    files = dict.fromkeys(test.split("::")[0] for mutant in court.mutants for test in mutant.target.tests)
    without = [word for plugin in ("terminal", "cacheprovider", "xdist") for word in ("-p", f"no:{plugin}")]
    return pytest.main([*without, "-W", "ignore", "-o", "addopts=", "-m", "not long", *files], plugins=[court])


class Court:
    """A plugin of pytest that runs the tests it has collected against mutants."""

    def __init__(self, mutants: list[Mutant], of_kernels: bool, jobs: int, writing: int):
        """writing: file descriptor for the verdicts, a line of JSON each."""
        self.mutants, self.of_kernels, self.jobs, self.writing = mutants, of_kernels, jobs, writing
        self.failures: list[str] = []

    def pytest_configure(self, config):
        config.option.tbstyle = "native"  # of failures, which nobody reads: the others take longer than many a test

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self):
        """Set how examples are drawn, before the tests are imported."""
        usual, phases = hypothesis.settings.default, [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        if self.of_kernels:
            usual, phases = hypothesis.settings(usual, max_examples=EXAMPLES), phases[1:]
        hypothesis.settings.register_profile("trial", usual, phases=phases, report_multiple_bugs=False)
        hypothesis.settings.load_profile("trial")

    def pytest_collection_finish(self):
        """Compare along fewer directions, and cut the work of kernels into pieces."""
        if "gradient_check" in sys.modules:
            gradient_check = sys.modules["gradient_check"]
            gradient_check.N_DIRECTIONS = DIRECTIONS
            gradient_check.check_gradients.__kwdefaults__["elementwise_up_to"] = 0
        import npllm.kernels
        from npllm.kernels.gemm import set_gemm

        set_gemm("blas")
        if self.of_kernels:
            for name, module in list(sys.modules.items()):
                if name.startswith(npllm.kernels.__name__):
                    for constant in SMALL_PIECES.keys() & vars(module).keys():
                        setattr(module, constant, SMALL_PIECES[constant])

    def pytest_collectreport(self, report):
        if report.failed:
            print(report.longreprtext, file=sys.stderr)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failures.append(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session) -> bool:
        """Try the code as it is, then the mutants."""
        gc.freeze()  # so that no fork copies what was imported, only to look for garbage in it
        usual = {}
        targets = dict.fromkeys(mutant.target for mutant in self.mutants)
        for verdict in self._tried(session, [(None, target, 60.0) for target in targets]):
            usual[verdict.file] = verdict.seconds
            self._tell(verdict)
            if not verdict.survived:
                return True
        todo = [(mutant, mutant.target, usual[mutant.target.file]) for mutant in self.mutants]
        for verdict in self._tried(session, todo):
            self._tell(verdict)
        return True

    def _tell(self, verdict: Verdict) -> None:
        os.write(self.writing, (json.dumps(verdict) + "\n").encode())

    def _tried(self, session, todo: list[tuple[Mutant | None, Target, float]]) -> Iterator[Verdict]:
        """Try mutants, `jobs` at a time. usual: the seconds that the tests take."""
        running, waiting = {}, iter(todo)
        while True:
            for mutant, target, usual in waiting:
                running[self._start(session, mutant, target, usual)] = mutant, target
                if len(running) == self.jobs:
                    break
            if not running:
                return
            process, status, usage = os.wait4(-1, 0)
            (mutant, target), seconds = running.pop(process), usage.ru_utime + usage.ru_stime
            survived = os.waitstatus_to_exitcode(status) == SURVIVED
            output = "" if mutant or survived else self._output(session, target)
            yield Verdict(mutant.number if mutant else 0, target.file, survived, seconds, output)

    def _start(self, session, mutant: Mutant | None, target: Target, usual: float) -> int:
        """Return the number of a new process that tries the mutant."""
        process = os.fork()
        if not process:
            limit = round(LEAST_SECONDS + TIMES_LONGER * usual)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # an endless loop ends here, by a signal
            _end_with(lambda: self._judge(session, mutant, target))
        return process

    def _judge(self, session, mutant: Mutant | None, target: Target) -> int:
        if mutant:
            plant(mutant)
        places = {item: target.place_of(item.nodeid) for item in session.items}
        judges = [item for item, place in places.items() if place is not None]
        if not judges:
            raise ValueError(f"No test judges {target.file}; name one in tools/mutation/mutants.py.")
        for item in sorted(judges, key=places.get):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failures:
                return KILLED
        return SURVIVED

    def _output(self, session, target: Target) -> str:
        """Run the tests of a target here, and return what the first failure says."""
        try:
            self._judge(session, None, target)
        except ValueError as error:
            return str(error)
        return self.failures[0] if self.failures else "They took too long."


def plant(mutant: Mutant) -> None:
    """Give the mutated function its new code, wherever it has been imported."""
    file = mutant.target.file
    outermost = mutant.function  # of a function in a function; the code of the inner one is in that of the outer one
    module = import_module(file.removesuffix(".py").replace("/", "."))
    codes = {code.co_qualname: code for code in _codes_in(compile(mutant.source, file, "exec"))}
    while outermost not in codes:
        outermost = outermost.rpartition(".")[0]
    inspect.unwrap(attrgetter(outermost)(module)).__code__ = codes[outermost]


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions and classes, those in functions too."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes_in(constant)


_numpy_empty = np.empty


def empty_of_nan(shape, dtype=float, **options) -> np.ndarray:
    """Return what np.empty returns, with NaN in it, or 77 where it holds integers."""
    array = _numpy_empty(shape, dtype, **options)
    if array.dtype.kind in "fiu":
        array.fill(np.nan if array.dtype.kind == "f" else 77)
    return array
