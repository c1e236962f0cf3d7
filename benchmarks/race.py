"""Contenders that do the same job in turns, each in its own process."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers.process import PeerAbsent, Worker, WorkerError, start_worker
from benchmarks.tables import Row
from benchmarks.timing import Runner, interleave, repeats_within, spread, times_faster

BURST = 0.5  # seconds; a round of short work lasts this long
PEERS_PYTHON = "NPLLM_PEERS_PYTHON"

Facts = dict[str, Any]
Check = Callable[["Contender", Facts, Facts], None]


class Contender(NamedTuple):
    """One contender.

    worker: its module in benchmarks.peers. settings: of its job, in addition to those
    that all get; they may name another job. tolerance: relative, for the check.
    n_ranks: processes that mpiexec starts; 1 = without it.
    """

    name: str
    worker: str
    settings: dict[str, Any]
    tolerance: float = 0.0
    environment: dict[str, str] | None = None
    n_ranks: int = 1

    @property
    def is_peer(self) -> bool:
        return not self.worker.startswith("npllm_")

    def start(self) -> AbstractContextManager[Worker]:
        """Start its process.

        Raises PeerAbsent for a peer when no interpreter for it is named.
        """
        if self.is_peer and PEERS_PYTHON not in os.environ:
            raise PeerAbsent(f"{PEERS_PYTHON} does not name an interpreter that has it")
        python = os.environ[PEERS_PYTHON] if self.is_peer else sys.executable
        launcher = launcher_of(self.n_ranks) if self.n_ranks > 1 else []
        return start_worker(python, f"benchmarks.peers.{self.worker}", self.environment, launcher)


def launcher_of(n_ranks: int) -> list[str]:
    """Return the words that start a command on several ranks.

    Raises WorkerError where mpi4py is missing, or mpiexec, which may be beside the
    interpreter or in PATH.
    """
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = which("mpiexec", path=places)
    if mpiexec is None or find_spec("mpi4py") is None:
        raise WorkerError("mpiexec or mpi4py is not installed; pip install 'npllm[mpi]' installs both")
    return [mpiexec, "-n", str(n_ranks)]


def race(contenders: list[Contender], job: str, settings: dict[str, Any], check: Check, rounds: int) -> list[Row]:
    """Return a row for each contender; if one cannot take part, its row says why.

    check: gets a contender, the facts of its job and those of the first contender, and
    raises SystemExit when the results differ. "ratio" in a row says how many times as
    long as the first contender this one takes.
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
                facts[name] = worker.set_up(**{"job": job, **settings, **contender.settings})
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
            "seconds_by_round": times,
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
    """Return a sentence for each contender that did not take part, with the reason."""
    reasons = {row["contender"]: row["failure"] for row in rows if "failure" in row}
    return [f"{name} did not take part: {why}" for name, why in reasons.items()]
