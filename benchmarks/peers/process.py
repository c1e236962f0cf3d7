"""This process's side of the pipe: starts a worker, sends it requests, ends it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # the folder that holds the package `benchmarks`


class WorkerError(Exception):
    """The worker could not do its job; the message is one line that says why."""


class PeerAbsent(WorkerError):
    """The peer is not installed: no interpreter is named, or it lacks the library."""


def failure(message: str) -> WorkerError:
    """Return the error for the last words of a worker."""
    return (PeerAbsent if message.startswith("ModuleNotFoundError: No module named") else WorkerError)(message)


@contextmanager
def start_worker(
    python: str, module: str, environment: dict[str, str] | None = None, launcher: Sequence[str] = ()
) -> Iterator["Worker"]:
    """Run a module in a new process until the context ends.

    environment: variables in addition to this process's own. launcher: words before the
    command, such as those of mpiexec, which hands standard input to the first rank.
    """
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(
                [*launcher, python, "-m", module],
                cwd=ROOT,
                env=os.environ | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        except OSError as error:
            raise WorkerError(f"{python} cannot be started ({error.strerror})") from error
        try:
            yield Worker(process, log)
        finally:
            with suppress(BrokenPipeError):  # it may have ended before it read the last request
                process.stdin.close()
            process.wait()
            process.stdout.close()


class Worker:
    """A process that sets up one job and does it when asked; it sleeps in between."""

    def __init__(self, process: subprocess.Popen, log):
        self.peak_bytes = 0  # the most RAM that the process has held
        self._process = process
        self._log = log

    def set_up(self, job: str, **settings: Any) -> dict[str, Any]:
        """Set up the job and return its facts."""
        return self._ask({"job": job, **settings})

    def run(self, repeats: int = 1) -> float:
        """Do the work and return the seconds of one time."""
        reply = self._ask({"repeats": repeats})
        self.peak_bytes = reply["peak_bytes"]
        return reply["seconds"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise failure(self._last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise failure(reply["error"])
        return reply

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"ended with status {status}")
