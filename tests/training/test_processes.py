"""Real processes, stopped by real signals while they train."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, NPLLM, pretrain_arguments, run, state_digests, untimed_metrics, write_text

STEPS = 1000
SETTINGS = {"train__steps": STEPS, "train__checkpoint_every": 100, "train__eval_every": 300, "model__dropout": 0.1}
PATIENCE = 300.0  # seconds; starting may include compiling every kernel


@pytest.mark.usefixtures("quick")
def test_interrupted_then_killed_then_finished(tmp_path):
    """The same weights, moments and log as a run that nobody disturbed, although one part of it had one thread."""
    text, out = write_text(tmp_path), tmp_path / "run"

    process = start(*pretrain_arguments(text, out, **SETTINGS), NUMBA_NUM_THREADS="1")
    wait_for_lines(process, out / "metrics.jsonl", 20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Stopped and saved after step" in errors
    assert errors.rstrip().endswith(f"go on with: npllm resume {out}")
    assert len(errors.splitlines()) == 1

    done = len(untimed_metrics(out))
    process = start("resume", str(out))
    wait_for_lines(process, out / "metrics.jsonl", done + 150)  # so that it has a checkpoint of its own
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL

    assert run("resume", out) == 0
    assert run(*pretrain_arguments(text, tmp_path / "undisturbed", **SETTINGS)) == 0
    assert state_digests(out) == state_digests(tmp_path / "undisturbed")
    assert untimed_metrics(out) == untimed_metrics(tmp_path / "undisturbed")


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*NPLLM, *arguments],
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process: subprocess.Popen, path: Path, n_lines: int) -> None:
    """Until the process has written so many lines of metrics; fails when it ends before, or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or path.read_bytes().count(b"\n") < n_lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no {n_lines} lines in {path} after {PATIENCE} seconds"
        time.sleep(0.005)
    assert path.read_bytes().count(b"\n") < STEPS, "the run was over before it could be stopped: give it more steps"
