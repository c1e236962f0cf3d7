"""Workers in other processes: their answers, their errors, and the rows of both."""

import sys
from contextlib import nullcontext

import pytest

from benchmarks import race as race_module
from benchmarks.peers.process import PeerAbsent, WorkerError, failure, start_worker
from benchmarks.race import PEERS_PYTHON, Contender, absences, race


class FakeContender:
    """A contender without a process, whose rounds take the given seconds."""

    def __init__(self, name, seconds=(), result=1.0, error=None):
        self.name, self.settings = name, {"own": name}
        self._seconds, self._result, self._error = [0.1, *seconds], result, error
        self.peak_bytes = 5_000_000

    def start(self):
        return nullcontext(self)

    def set_up(self, job, **settings):
        if self._error:
            raise WorkerError(self._error)
        assert settings == {"common": 1, "own": self.name}
        return {"imported_bytes": 2_000_000, "result": self._result}

    def run(self, repeats=1):
        return self._seconds.pop(0)


def check_result(contender, theirs, ours):
    if theirs["result"] != ours["result"]:
        raise SystemExit(f"{contender.name} is wrong")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.sleep", lambda seconds: None)


def test_rows_have_medians_ratios_and_memory():
    ours, theirs = FakeContender("npllm", [1.0, 2.0, 4.0]), FakeContender("peer", [2.0, 6.0, 4.0])
    first, second = race([ours, theirs], "job", {"common": 1}, check_result, rounds=3)
    assert (first["seconds"], first["ratio"]) == (2.0, 1.0)
    assert (second["seconds"], second["ratio"]) == (4.0, 2.0), "the median of 2, 3 and 1"
    assert (second["peak_mb"], second["peak_above_imports_mb"]) == (5.0, 3.0)
    assert second["facts"] == {"result": 1.0}


def test_a_wrong_contender_stops_the_benchmark_before_anything_is_timed():
    ours, theirs = FakeContender("npllm", [1.0]), FakeContender("peer", [1.0], result=2.0)
    with pytest.raises(SystemExit, match="peer is wrong"):
        race([ours, theirs], "job", {"common": 1}, check_result, rounds=1)
    assert ours._seconds == [1.0], "no round was timed"


def test_one_that_cannot_take_part_is_shown_with_its_reason():
    contenders = [FakeContender("npllm", [1.0]), FakeContender("peer", error="no compiler"), FakeContender("b", [3.0])]
    rows = race(contenders, "job", {"common": 1}, check_result, rounds=1)
    assert [row["contender"] for row in rows] == ["npllm", "peer", "b"]
    assert rows[1] == {"contender": "peer", "failure": "no compiler"}
    assert rows[2]["ratio"] == 3.0
    assert absences(rows + rows) == ["peer did not take part: no compiler"]


def test_without_npllm_there_is_nothing_to_compare():
    with pytest.raises(SystemExit, match="npllm failed .out of memory.; nothing was timed"):
        race([FakeContender("npllm", error="out of memory")], "job", {"common": 1}, check_result, rounds=1)


def test_without_an_interpreter_a_peer_says_what_is_missing(monkeypatch):
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    with pytest.raises(PeerAbsent, match=PEERS_PYTHON):
        Contender("PyTorch", "torch_worker", {}).start()
    monkeypatch.setenv(PEERS_PYTHON, "/no/such/python")
    with (
        pytest.raises(WorkerError, match="/no/such/python cannot be started") as error,
        race_module.ExitStack() as stack,
    ):
        stack.enter_context(Contender("PyTorch", "torch_worker", {}).start())
    assert not isinstance(error.value, PeerAbsent), "a name that leads nowhere is a mistake"


def test_a_worker_that_dies_says_its_last_words():
    absent = start_worker(sys.executable, "benchmarks.peers.no_such_worker")
    with absent as worker, pytest.raises(WorkerError, match="No module named"):
        worker.set_up("train")


def test_a_library_that_is_not_installed_is_no_mistake():
    assert isinstance(failure("ModuleNotFoundError: No module named 'torch'"), PeerAbsent)
    assert not isinstance(failure("RuntimeError: No module named 'torch'"), PeerAbsent)


def test_a_job_that_fails_is_one_line_and_the_worker_lives_on():
    with start_worker(sys.executable, "benchmarks.peers.npllm_worker") as worker:
        with pytest.raises(WorkerError, match=r"^KeyError: 'juggle'$"):
            worker.set_up("juggle")
        with pytest.raises(WorkerError, match="TypeError: .* missing"):
            worker.set_up("train")
