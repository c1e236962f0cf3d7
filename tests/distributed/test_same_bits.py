"""A run has the same bits on any number of ranks, each with any number of threads."""

import re
import signal

import pytest
from jobs import arguments_of, job, needs_mpi, signalled
from small_runs import (
    SPIKING,
    broken_text,
    pretrain_arguments,
    run,
    state_digests,
    stop_after,
    summary,
    untimed_metrics,
    write_text,
)

from npllm.runs.ledger import Ledger
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
    [(2, 1), *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, 2), (2, 2), (4, 1), (4, 2)))],
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


@pytest.mark.long  # test_moment_shards.py has the same without MPI
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_the_moments_of_other_optimisers_are_divided(tmp_path, name):
    """Muon's matrices are not cut. With four ranks, one has no moment of a matrix."""
    changes = {"optim__name": name, "model__n_layer": 2, "train__steps": 12, "batch__ramp_start": None}
    text = write_text(tmp_path)
    assert run(*arguments_of(text, tmp_path / "alone", **changes)) == 0
    done = job(4, *arguments_of(text, tmp_path / "together", **changes))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "together", tmp_path / "alone")


def test_a_loss_spike_and_its_rollback(tmp_path):
    """All ranks go back together, and the ledger has each spike once."""
    text, settings = broken_text(tmp_path), SPIKING | {"batch__micro_size": 1, "train__steps": 120}
    assert run(*pretrain_arguments(text, tmp_path / "alone", **settings)) == 0
    done = job(2, *pretrain_arguments(text, tmp_path / "together", **settings))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "together", tmp_path / "alone")
    alone, together = (Ledger(tmp_path / name / "ledger.jsonl").events for name in ("alone", "together"))
    assert {event["event"] for event in alone} == {"rollback", "left_out"}
    assert [{**event, "time": None} for event in alone] == [{**event, "time": None} for event in together]
