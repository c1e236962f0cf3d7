"""Times every rung of every ladder, after a check that all give the same result."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import numba
import numpy as np

from benchmarks.checks import TOLERANCE, check_close
from benchmarks.ladder import adamw, attention, cross_entropy, exponential, gelu, layernorm, matmul, maximum, softmax
from benchmarks.ladder.task import Arrays, Task
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.race import BURST, Contender
from benchmarks.tables import Row
from benchmarks.timing import PAUSE, SHORT_PAUSE, Runner, interleave, repeats_within, spread, timed, times_faster
from npllm.memory.arena import Arena

OPERATIONS = (
    exponential,
    maximum,
    gelu,
    softmax,
    layernorm,
    adamw,
    matmul,
    cross_entropy,
    attention,
)  # in reading order
PYTHON, NUMPY, PLAIN, PARALLEL, KERNEL, TORCH = (
    "Python loop",
    "NumPy",
    "Numba loop",
    "Numba parallel loop",
    "npllm kernel",
    "PyTorch",
)
PYTORCH = Contender(TORCH, "torch_worker", {})


def measure(rounds: int, peak: float, bandwidth: float, peers: bool = True) -> list[Row]:
    """Return a row for every rung of every operation.

    peak: of the machine, in operations per second. bandwidth: in bytes per second.
    """
    rows = []
    with torch_worker(peers) as torch:
        for operation in OPERATIONS:
            rows += climb(operation.task(), operation.task(*operation.SMALL), rounds, torch)
    for row in rows:
        row |= place_under_roof(row, peak, bandwidth)
    return rows


@contextmanager
def torch_worker(peers: bool) -> Iterator[Worker | None]:
    """Yield a worker with PyTorch, or None where there is no PyTorch."""
    try:
        context = PYTORCH.start() if peers else nullcontext()
    except WorkerError:
        context = nullcontext()
    with context as worker:
        yield worker


def climb(task: Task, small: Task, rounds: int, torch: Worker | None = None) -> list[Row]:
    """Return a row for every rung.

    small: the same operation, in a size that a loop in Python finishes quickly.
    """
    in_python, right = with_loop(small.loop, small), functions_of(small)[NUMPY]()
    check_close(f"{task.operation}, {PYTHON}", in_python()[: len(right)], right, TOLERANCE["float32"])
    functions = functions_of(task)
    right = tuple(result.copy() for result in functions[NUMPY]())
    for name, function in functions.items():
        if name != NUMPY:
            check_close(f"{task.operation}, {name}", function()[: len(right)], right, TOLERANCE["float32"])
    runners = {PYTHON: timed(in_python)} | {name: timed(function) for name, function in functions.items()}
    if torch is not None and task.in_torch:
        runners[TORCH] = with_torch(torch, task, right)
    seconds = interleave(runners, rounds, PAUSE if TORCH in runners else SHORT_PAUSE)
    seconds[PYTHON] = [task.flops / small.flops * short for short in seconds[PYTHON]]
    return [
        {
            "operation": task.operation,
            "shape": task.shape,
            "rung": name,
            "seconds": median(times),
            "spread": spread(times),
            "ratio": times_faster(seconds[KERNEL], times),
            "gflops": 1e-9 * task.flops / median(times),
            "flops_per_byte": task.flops / task.n_bytes,
            "ns_per_element": 1e9 * median(times) / task.elements if task.elements else None,
        }
        for name, times in seconds.items()
    ]


def functions_of(task: Task) -> dict[str, Callable[[], Arrays]]:
    """Return the rungs between Python's and PyTorch's; each returns its results."""
    functions = {NUMPY: partial(task.numpy, *own_inputs(task)), PLAIN: with_loop(numba.njit(task.loop), task)}
    if not task.elements:
        functions[PARALLEL] = with_loop(numba.njit(task.loop, parallel=True), task)
    return functions | {KERNEL: with_kernel(task)}


def own_inputs(task: Task) -> Arrays:
    """Return the inputs, copied where the operation changes them."""
    return task.inputs if task.outputs else tuple(array.copy() for array in task.inputs)


def with_loop(loop: Callable[..., None], task: Task) -> Callable[[], Arrays]:
    inputs = own_inputs(task)

    def call():
        loop(*inputs, *task.outputs)
        return task.outputs or inputs

    return call


def with_kernel(task: Task) -> Callable[[], Arrays]:
    inputs, arena = own_inputs(task), Arena()

    def call():
        arena.reset()
        return task.kernel(arena.empty, *inputs)

    return call


def with_torch(worker: Worker, task: Task, right: Arrays) -> Runner:
    """Return a runner of PyTorch in its own process; files pass the arrays."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"input-{i}") for i in range(len(task.inputs))]
        results = [Path(folder, f"result-{i}") for i in range(len(right))]
        for path, array in zip(paths, task.inputs, strict=True):
            array.tofile(path)
        worker.set_up(
            "operation",
            name=task.in_torch,
            threads=numba.config.NUMBA_NUM_THREADS,
            inputs=[(str(p), str(a.dtype), a.shape) for p, a in zip(paths, task.inputs, strict=True)],
            results=[str(path) for path in results],
        )
        theirs = tuple(
            np.fromfile(path, np.float32).reshape(array.shape) for path, array in zip(results, right, strict=True)
        )
    check_close(f"{task.operation}, {TORCH}", theirs, right, TOLERANCE["float32"])
    repeats = repeats_within(BURST / 10, worker.run())
    return lambda: worker.run(repeats)


def place_under_roof(row: Row, peak: float, bandwidth: float) -> Row:
    """Return what limits the operation here, and the share that the rung reaches.

    The limit is the arithmetic or the memory.
    """
    intensity = row["flops_per_byte"]
    rate = 1e9 * row["gflops"]
    if row["ns_per_element"] is not None:
        return {}
    if intensity * bandwidth < peak:
        return {"limit": "memory", "gb_per_s": 1e-9 * rate / intensity, "share": rate / intensity / bandwidth}
    return {"limit": "arithmetic", "share": rate / peak}
