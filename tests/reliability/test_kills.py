"""Real `npllm` processes are killed at random moments of one run, then resumed.

The text has broken lines in it, so the run has loss spikes of its own and goes back:
some of the moments lie in rollbacks. The run is killed once in each way, and twenty
times; `test_crash_points.py` ends runs at chosen moments without a process of their
own.
"""

import random
import signal
import subprocess
import time

import proofs
import pytest
from small_runs import (
    ENVIRONMENT,
    NPLLM,
    PATIENCE,
    SPIKING,
    broken_text,
    pretrain_arguments,
    run,
    state_digests,
    untimed_metrics,
)

from npllm.runs.ledger import Ledger

STEPS = 600
ENDS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice")
SETTINGS = SPIKING | {"data__val_fraction": 0.02, "train__steps": STEPS}


class Process:
    """`npllm pretrain`, or `npllm resume` where there is a run.

    The constructor returns when the process has written `more_lines` lines of its log.
    """

    def __init__(self, text, out, more_lines, *, steps=STEPS, **environment):
        self.log = out / "metrics.jsonl"
        new = pretrain_arguments(text, out, **SETTINGS | {"train__steps": steps})
        arguments = ["resume", str(out)] if out.exists() else new
        self.popen = subprocess.Popen(
            [*NPLLM, *arguments],
            env=ENVIRONMENT | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wanted, deadline = self.lines() + more_lines, time.monotonic() + PATIENCE
        while self.popen.poll() is None and self.lines() < wanted:
            assert time.monotonic() < deadline, "the process makes no progress"
            time.sleep(0.002)

    def lines(self):
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def end(self, *signals):
        """Send the signals; the exit code and the text on stderr."""
        for number in signals:
            self.popen.send_signal(number)
        _, said = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, said


def end_a_process(text, out, dice) -> str:
    """Continue the run, and end the process after some lines of its log; how it ended.

    Between two lines of the log there may be a step, a checkpoint that is being
    written, or a rollback.
    """
    how = dice.choice(ENDS)
    more_lines = dice.randrange(30) + (how != "SIGKILL")
    process = Process(text, out, more_lines, NUMBA_NUM_THREADS=dice.choice("12"))
    code, said = process.end(*[signal.Signals[how.split()[0]]] * (2 if "twice" in how else 1))
    if process.lines() < STEPS:  # on a busy machine the run may have ended before the signal came
        assert code == (-signal.SIGKILL if how == "SIGKILL" else 130), said
        if how in ("SIGINT", "SIGTERM"):
            step = process.lines()
            assert said == f"npllm: Stopped and saved after step {step}; go on with: npllm resume {out}\n"
    return how


def recoveries(out):
    return [event | {"time": None} for event in Ledger(out / "ledger.jsonl").events]


def numbers_of_each_end() -> list[int]:
    """For each way to end a process, the smallest seed that chooses it."""
    chosen = {random.Random(number).choice(ENDS): number for number in reversed(range(20))}
    return sorted(chosen.values())


@pytest.mark.long
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("numbers", [numbers_of_each_end(), range(20)], ids=["each way", "all"])
def test_06_07_11_a_run_that_was_killed_is_the_run_that_was_never_killed(tmp_path, numbers):
    text, out, undisturbed = broken_text(tmp_path), tmp_path / "run", tmp_path / "undisturbed"
    ends = [end_a_process(text, out, random.Random(number)) for number in numbers]
    assert set(ends) == set(ENDS)
    assert run("resume", out) == 0
    assert run(*pretrain_arguments(text, undisturbed, **SETTINGS)) == 0
    assert {event["event"] for event in recoveries(undisturbed)} == {"rollback", "left_out"}
    assert recoveries(out) == recoveries(undisturbed)
    assert state_digests(out) == state_digests(undisturbed)
    assert untimed_metrics(out) == untimed_metrics(undisturbed)
    proofs.count(proofs.FAULTS, len(ends))


def test_12_a_second_process_on_the_same_run_is_refused(tmp_path):
    text, out = broken_text(tmp_path), tmp_path / "run"
    first = Process(text, out, more_lines=1, steps=100_000)  # long enough to run until the second is refused
    command = [*NPLLM, "resume", str(out)]
    second = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL  # before any assertion: it would train for hours
    assert second.returncode == 2
    assert second.stderr == f"npllm: {out} is being trained by another process; wait until it ends or stop it.\n"
    third = Process(text, out, more_lines=1)  # the lock of a dead process does not count
    assert third.end(signal.SIGKILL)[0] == -signal.SIGKILL
