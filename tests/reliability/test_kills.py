"""Real `npllm` processes, killed at moments that hypothesis chooses, twenty times over one run.

Its text has broken lines in it, so the run spikes by itself and goes back: some of the moments lie in rollbacks.
"""

import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments, run, state_digests, untimed_metrics, write_text

from npllm.training.ledger import Ledger

STEPS = 600
SETTINGS = {
    "data__val_fraction": 0.02,
    "model__block_size": 16,
    "model__dropout": 0.1,
    "optim__lr": 0.01,
    "batch__size": 2,
    "train__steps": STEPS,
    "train__checkpoint_every": 20,
    "train__eval_every": 20,
    "spikes__window": 64,
    "spikes__min_history": 16,
    "spikes__sigma": 5.0,
    "spikes__margin": 2,
    "spikes__max_rollbacks": 1000,
}


def broken_text(folder):
    """Sentences, and here and there a line of signs that never make sense."""
    path, dice = write_text(folder, n_lines=400), random.Random(0)
    lines = path.read_text().splitlines(keepends=True)
    for at in range(37, len(lines), 80):
        lines[at] = "".join(dice.choices("XYZW#@%&", k=60)) + "\n"
    path.write_text("".join(lines))
    return path


class Process:
    """`npllm pretrain` or, where there is a run, `npllm resume`: from its start until it has written some lines."""

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
        """Send the signals; the exit code, and what it said."""
        for number in signals:
            self.popen.send_signal(number)
        _, said = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, said


class KilledRun(RuleBasedStateMachine):
    """One run; each step is a process that goes on with it and is ended. `teardown` finishes it and compares."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.text, self.out = broken_text(Path(self.folder.name)), Path(self.folder.name) / "run"
        self.ends: list[str] = []

    @rule(seed=st.integers(0, 2**32 - 1))
    def end_a_process(self, seed):
        """After some lines of its log. Between two of them lie a step, a checkpoint being written beside it, a
        rollback. By a seed, so that the simplest example, all zeros, is as good as any."""
        dice = random.Random(seed + len(self.ends))
        how = dice.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice"])
        self.ends.append(how)
        more_lines = dice.randrange(30) + (how != "SIGKILL")
        process = Process(self.text, self.out, more_lines, NUMBA_NUM_THREADS=dice.choice("12"))
        code, said = process.end(*[signal.Signals[how.split()[0]]] * (2 if "twice" in how else 1))
        if process.lines() == STEPS:  # on a busy machine it may have been done before the signal came
            return
        assert code == (-signal.SIGKILL if how == "SIGKILL" else 130), said
        if how in ("SIGINT", "SIGTERM"):
            step = process.lines()
            assert said == f"npllm: Stopped and saved after step {step}; go on with: npllm resume {self.out}\n"

    def teardown(self):
        with self.folder:
            assert {"SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice"} == set(self.ends)
            assert len(self.ends) == 20
            assert run("resume", self.out) == 0
            undisturbed = Path(self.folder.name) / "undisturbed"
            assert run(*pretrain_arguments(self.text, undisturbed, **SETTINGS)) == 0
            assert len(rollbacks(undisturbed)) > 3
            assert rollbacks(self.out) == rollbacks(undisturbed)
            assert not [event for event in Ledger(self.out / "ledger.jsonl").events if event["event"] != "rollback"]
            assert state_digests(self.out) == state_digests(undisturbed)
            assert untimed_metrics(self.out) == untimed_metrics(undisturbed)


def rollbacks(out):
    return [event | {"time": None} for event in Ledger(out / "ledger.jsonl").rollbacks]


@pytest.mark.usefixtures("quick")
def test_06_07_11_a_run_killed_twenty_times_is_the_run_that_was_never_killed():
    """What is asserted stands in KilledRun."""
    run_state_machine_as_test(KilledRun, settings=settings(max_examples=1, stateful_step_count=20, deadline=None))


def test_12_a_second_process_on_the_same_run_is_refused(tmp_path):
    text, out = broken_text(tmp_path), tmp_path / "run"
    first = Process(text, out, more_lines=1, steps=100_000)  # it is not done before the second is refused
    command = [*NPLLM, "resume", str(out)]
    second = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert second.returncode == 2
    assert second.stderr == f"npllm: {out} is being trained by another process; wait until it ends, or stop it.\n"
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    third = Process(text, out, more_lines=1)  # the dead one's lock is no lock
    assert third.end(signal.SIGKILL)[0] == -signal.SIGKILL
