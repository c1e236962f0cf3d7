"""A run has the same bits on any number of ranks, each with any number of threads."""

import re
import signal
from itertools import product

import pytest
from faulty import bf16, poison
from jobs import arguments_of, job, needs_mpi, poisoned_text
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

from npllm.model import GPT
from npllm.runs.ledger import Ledger
from npllm.runs.metrics import read_metrics
from npllm.training import machine

pytestmark = needs_mpi
FAULTS = {"poison": [], "bf16": []}
QUICK = ("float32", 2, 1)
GRID = list(product(("float32", "bf16"), (1, 2, 4), (1, 2)))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """The text, and the runs of one process by dtype. They have one spike."""
    folder = tmp_path_factory.mktemp("alone")
    text, runs = poisoned_text(folder), {}

    def alone(dtype):
        if dtype not in runs:
            runs[dtype] = folder / dtype
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(GPT, "loss_and_grad", GPT.loss_and_grad)  # undone after the run
                patch.setattr(machine, "HAS_BFLOAT16_DOT", machine.HAS_BFLOAT16_DOT)
                poison()
                bf16()
                assert run(*arguments_of(text, runs[dtype], train__dtype=dtype)) == 0
        return runs[dtype]

    return text, alone


def assert_same(out, expected):
    assert state_digests(out) == state_digests(expected)
    assert untimed_metrics(out) == untimed_metrics(expected)
    assert summary(out)["params_sha256"] == summary(expected)["params_sha256"]
    assert untimed_events(out) == untimed_events(expected)


def untimed_events(out):
    """The ledger's events, without the time."""
    return [{**event, "time": None} for event in Ledger(out / "ledger.jsonl").events]


@pytest.mark.parametrize(
    ("dtype", "n_ranks", "threads"),
    [pytest.param(*each, marks=() if each == QUICK else pytest.mark.long) for each in GRID],
)
def test_pretraining(poisoned, tmp_path, dtype, n_ranks, threads):
    """One rank alone has the sample that spikes, and all ranks go back once."""
    text, alone = poisoned
    expected = alone(dtype)
    done = job(n_ranks, *arguments_of(text, tmp_path / "run", train__dtype=dtype), threads=threads, **FAULTS)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", expected)
    assert (state_digests(expected) == state_digests(alone("float32"))) == (dtype == "float32")
    assert [(event["event"], event["step"]) for event in untimed_events(expected)] == [("rollback", 50)]
    assert len(re.findall("Next: npllm generate", done.stdout)) == 1, done.stdout


def test_a_run_stops_on_2_ranks_and_goes_on_with_1_and_with_4(poisoned, tmp_path, monkeypatch):
    """The signals come on rank 1, and in one process."""
    text, alone = poisoned
    out = tmp_path / "run"
    stopped = job(2, *arguments_of(text, out, train__dtype="float32"), signal=[1, 20, signal.SIGINT])
    assert (stopped.returncode, len(read_metrics(out / "metrics.jsonl"))) == (130, 20), stopped.stderr
    assert stopped.stderr.count("Stopped and saved after step 20") == 1, stopped.stderr
    stop_after(monkeypatch, 40)
    assert run("resume", out) == 130
    resumed = job(4, "resume", out, **FAULTS)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(out, alone("float32"))


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


@pytest.mark.long
def test_many_loss_spikes(tmp_path):
    """All ranks go back or leave an update out together, and the ledger has each spike
    once."""
    text, settings = broken_text(tmp_path), SPIKING | {"batch__micro_size": 1, "train__steps": 120}
    assert run(*pretrain_arguments(text, tmp_path / "alone", **settings)) == 0
    done = job(2, *pretrain_arguments(text, tmp_path / "together", **settings))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "together", tmp_path / "alone")
    assert {event["event"] for event in untimed_events(tmp_path / "alone")} == {"rollback", "left_out"}
