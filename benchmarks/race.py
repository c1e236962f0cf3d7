"""Contenders that do the same job, each in a process of its own, taking turns."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers.process import Worker, WorkerError, start_worker
from benchmarks.tables import Row
from benchmarks.timing import Runner, interleave, repeats_within, spread, times_faster

BURST = 0.5  # seconds that a round of short work lasts
TORCH_PYTHON = "NPLLM_TORCH_PYTHON"

Facts = dict[str, Any]
Check = Callable[["Contender", Facts, Facts], None]


class Contender(NamedTuple):
    """Who takes part. settings: of its job, besides those that all get. tolerance: relative, for the check."""

    name: str
    worker: str  # the module in benchmarks.peers
    settings: dict[str, Any]
    tolerance: float = 0.0
    environment: dict[str, str] | None = None

    @property
    def is_peer(self) -> bool:
        return self.worker != "npllm_worker"

    def start(self) -> AbstractContextManager[Worker]:
        """Raises WorkerError for a peer where no interpreter for it is named."""
        if self.is_peer and TORCH_PYTHON not in os.environ:
            raise WorkerError(f"{TORCH_PYTHON} does not name a Python that has it")
        python = os.environ[TORCH_PYTHON] if self.is_peer else sys.executable
        return start_worker(python, f"benchmarks.peers.{self.worker}", self.environment)


def race(contenders: list[Contender], job: str, settings: dict[str, Any], check: Check, rounds: int) -> list[Row]:
    """A row for each contender; one that cannot take part has a row that says why.

    check: is given a contender, the facts of its job and those of the first contender's, and raises SystemExit if it
    did something else. The first contender is the one that "ratio" compares with: how many times as long others take.
    """
    workers: dict[str, Worker] = {}
    facts: dict[str, Facts] = {}
    imported_bytes: dict[str, int] = {}
    runners: dict[str, Runner] = {}
    rows: dict[str, Row] = {}
    with ExitStack() as stack:
        for contender in contenders:
            name = contender.name
            rows[name] = {"contender": name}
            try:
                worker = stack.enter_context(contender.start())
                facts[name] = worker.set_up(job, **{**settings, **contender.settings})
                imported_bytes[name] = facts[name].pop("imported_bytes")
                check(contender, facts[name], facts[contenders[0].name])
                runners[name], workers[name] = _runner(worker), worker
            except WorkerError as error:
                if contender is contenders[0]:
                    raise SystemExit(f"{name} failed ({error}); nothing was timed.") from error
                rows[name]["failure"] = str(error)
        seconds = interleave(runners, rounds)
    for name, times in seconds.items():
        peak = workers[name].peak_bytes
        rows[name] |= {
            "seconds": median(times),
            "spread": spread(times),
            "ratio": times_faster(seconds[contenders[0].name], times),
            "facts": facts[name],
            "peak_mb": peak / 1e6,
            "peak_above_imports_mb": (peak - imported_bytes[name]) / 1e6,
        }
    return list(rows.values())


def _runner(worker: Worker) -> Runner:
    repeats = repeats_within(BURST, worker.run())
    return lambda: worker.run(repeats)


def absences(rows: list[Row]) -> list[str]:
    """A sentence about each contender that did not take part and why."""
    reasons = {row["contender"]: row["failure"] for row in rows if "failure" in row}
    return [f"{name} did not take part: {why}" for name, why in reasons.items()]
