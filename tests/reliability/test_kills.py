"""Real processes, killed at moments that hypothesis chooses, twenty times over one run."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from reliability import child
from reliability.small_training import Poison, assert_same_bits, clean_state, events, fifty_fold, make_run, train_on

from npllm.training import train
from npllm.training.metrics import read_metrics

PATIENCE = 120.0  # seconds for what takes one or two; the first process compiles the kernels
CLOCKED = {"seconds", "tokens_per_s", "mfu"}


class Process:
    """A training process, from its start until it has written some lines of its log."""

    def __init__(self, run, more_lines):
        self.log = run.metrics
        command = [sys.executable, child.__file__, str(run.path)]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wanted, deadline = self.lines() + more_lines, time.monotonic() + PATIENCE
        while self.popen.poll() is None and self.lines() < wanted:
            assert time.monotonic() < deadline, "the process makes no progress"
            time.sleep(0.002)

    def lines(self):
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def end(self):
        """Its exit code and what it said."""
        _, said = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, said


class KilledRun(RuleBasedStateMachine):
    """One run; each step is a process that goes on with it and is ended. `teardown` finishes it and compares."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.run = make_run(Path(self.folder.name) / "run")
        self.ends: list[str] = []

    @rule(seed=st.integers(0, 2**32 - 1))
    def end_a_process(self, seed):
        """After some lines of its log. Between two of them lie a step, a checkpoint being written beside it, a
        rollback. By a seed, so that the simplest example, all zeros, is as good as any."""
        dice = random.Random(seed + len(self.ends))
        how = dice.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice"])
        self.ends.append(how)
        process = Process(self.run, more_lines=dice.randrange(30) + (how != "SIGKILL"))
        for _ in range(2 if how == "SIGINT twice" else 1):
            process.popen.send_signal(signal.Signals[how.split()[0]])
        code, said = process.end()
        if how == "SIGKILL":
            assert code in (-signal.SIGKILL, 0)
        else:
            assert code in (130, 0), said
        if how in ("SIGINT", "SIGTERM") and code == 130:
            assert said.startswith(f"Stopped and saved after step {process.lines()};"), said

    def teardown(self):
        assert {"SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice"} == set(self.ends)
        assert len(self.ends) == 20
        with self.folder:
            state = train_on(self.run, child.LONG, Poison(child.LONG, child.BAD, fifty_fold))
            expected, expected_events, expected_log = undisturbed()
            assert events(self.run, "rollback") == expected_events
            assert events(self.run, "refused", "gave_up") == []
            assert_same_bits(state, expected)
            assert untimed(self.run) == expected_log


def test_12_a_second_process_on_the_same_run_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    first = Process(run, more_lines=1)
    command = [sys.executable, child.__file__, str(run.path)]
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert first.popen.poll() is None, "the first one was done before the second could be refused"
    first.popen.kill()
    first.end()
    assert second.returncode == 2
    assert second.stderr == f"{run.path} is being trained by another process; wait until it ends, or stop it.\n"
    third = Process(run, more_lines=1)  # the dead one's lock is no lock
    third.popen.kill()
    assert third.end()[0] == -signal.SIGKILL


def untimed(run):
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in read_metrics(run.metrics)]


def undisturbed(cache=[]):  # noqa: B006 (kept between the examples)
    """State, rollbacks and log of the same run that nobody killed; its weights are those of a clean run."""
    if not cache:
        with tempfile.TemporaryDirectory() as folder:
            run = make_run(Path(folder) / "run")
            state = train_on(run, child.LONG, Poison(child.LONG, child.BAD, fifty_fold))
            rollbacks = events(run, "rollback")
            assert len(rollbacks) >= 3
            assert_same_bits(state, clean_state(child.LONG, [tuple(event["skipped"]) for event in rollbacks]))
            cache.append((state, rollbacks, untimed(run)))
    return cache[0]


def test_06_07_11_a_run_killed_twenty_times_is_the_run_that_was_never_killed(monkeypatch):
    monkeypatch.setattr(train, "matmul_peak", lambda dtype: 1e9)
    run_state_machine_as_test(KilledRun, settings=settings(max_examples=1, stateful_step_count=20, deadline=None))
