"""A rank that dies, stops or fails: the job ends, says why, and can be resumed."""

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import arguments_of, job, needs_mpi
from small_runs import run, state_digests, write_text

from npllm.distributed.pulse import BEAT, LONGEST_SILENCE

pytestmark = needs_mpi
WAITS = 24  # of a rank in one update, with a checkpoint


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The text, and the state at the end of the run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    text = write_text(folder)
    assert run(*arguments_of(text, folder / "run", train__steps=30)) == 0
    return text, state_digests(folder / "run")


def assert_survives(alone, out, rank, update, number, waits=0, **faults):
    """A rank gets a signal, the job ends, and the run goes on as if nothing had been.
    Returns what the job has said."""
    text, expected = alone
    ended = job(2, *arguments_of(text, out, train__steps=30), signal=[rank, update, number, waits], **faults)
    assert ended.returncode != 0
    assert run("resume", out) == 0
    assert state_digests(out) == expected
    return ended.stderr


def test_a_rank_is_killed(alone, tmp_path):
    assert_survives(alone, tmp_path / "run", 1, 13, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@settings(max_examples=20)
@given(rank=st.integers(0, 1), update=st.integers(1, 28), waits=st.integers(0, WAITS))
def test_a_rank_is_killed_or_stopped_at_any_moment(alone, tmp_path_factory, number, rank, update, waits):
    out = tmp_path_factory.mktemp("ended") / "run"
    assert_survives(alone, out, rank, update, number, waits, impatient=[])


@pytest.mark.long  # it takes the time after which a silent rank is given up
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_stopped(alone, tmp_path, rank):
    said = assert_survives(alone, tmp_path / "run", rank, 21, signal.SIGSTOP)
    assert f"Rank {rank}, on " in said
    assert LONGEST_SILENCE + 10 * BEAT < 60  # seconds, in which the job has to end


def test_more_ranks_than_micro_batches(alone, tmp_path):
    """The message comes once, and nothing is left behind."""
    arguments = arguments_of(alone[0], tmp_path / "run", batch__size=4, batch__micro_size=4, batch__ramp_start=4)
    refused = job(2, *arguments)
    assert refused.returncode == 2, refused.stderr
    said = [line for line in refused.stderr.splitlines() if line.startswith("npllm: ")]
    assert len(said) == 1, refused.stderr
    assert "There are 2 ranks" in said[0]
    assert "lower batch.micro_size to 2" in said[0]
    assert not (tmp_path / "run").exists()
