"""A run has the same bits on any number of ranks, each with any number of threads."""

import re
import signal

import pytest
from jobs import arguments_of, job, needs_mpi, signalled
from small_runs import run, state_digests, stop_after, summary, untimed_metrics, write_text

from npllm.runs.metrics import read_metrics

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The text, and the run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    text = write_text(folder)
    assert run(*arguments_of(text, folder / "run")) == 0
    return text, folder / "run"


def assert_same(out, expected):
    assert state_digests(out) == state_digests(expected)
    assert untimed_metrics(out) == untimed_metrics(expected)
    assert summary(out)["params_sha256"] == summary(expected)["params_sha256"]


@pytest.mark.parametrize(
    ("n_ranks", "threads"),
    [(2, 1), (4, 2), *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, 2), (2, 2), (4, 1)))],
)
def test_pretraining(alone, tmp_path, n_ranks, threads):
    text, expected = alone
    done = job(n_ranks, *arguments_of(text, tmp_path / "run"), threads=threads)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", expected)
    assert len(re.findall("Next: npllm generate", done.stdout)) == 1, done.stdout


def test_a_run_stops_on_2_ranks_and_goes_on_with_1_and_with_4(alone, tmp_path, monkeypatch):
    """The signals come on rank 1, and in one process."""
    text, expected = alone
    out = tmp_path / "run"
    stopped = signalled(2, 1, 20, signal.SIGINT, *arguments_of(text, out))
    assert (stopped.returncode, len(read_metrics(out / "metrics.jsonl"))) == (130, 20), stopped.stderr
    assert stopped.stderr.count("Stopped and saved after step 20") == 1, stopped.stderr
    stop_after(monkeypatch, 40)
    assert run("resume", out) == 130
    resumed = job(4, "resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(out, expected)
