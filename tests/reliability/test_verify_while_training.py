"""`npllm verify` during training: pruned and replaced files are not damaged.

A run with two rollbacks is recorded: the content of its folder before each event on the
disk. Then `verify` reads the recording, which moves on after each read.
"""

import math
import os
import sys

import pytest
from reliability.faulty_disk import FaultyDisk, WrittenAtOnce
from reliability.small_training import CONFIG, Poison, make_run, train_on, with_training

from npllm.runs import checkpoint_store, verify
from npllm.runs.metrics import append_metrics, read_metrics
from npllm.runs.run_folder import RunFolder

SHORT = with_training(CONFIG, steps=20, checkpoint_every=3, keep=1)
BAD = [21, 33]  # both meet step 8, the second after the rollback; its rollback goes back further
READERS = ("read_manifest", "load_checkpoint", "entry_of", "checkpoint_files", "read_metrics", "Ledger", "read_summary")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's events are told apart by /proc/self/fd")


class Recorder(FaultyDisk):
    """A disk that records what it held before each event.

    Temporary files are left out, because nobody reads them.
    """

    def __init__(self, root):
        super().__init__(root)
        self.states = []

    def _event(self, what, path):
        files = [file for file in self.root.rglob("[!.]*") if file.is_file()]
        self.states.append({str(file.relative_to(self.root)): file.read_bytes() for file in files})
        return super()._event(what, path)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("recorded") / "run")
    disk = Recorder(run.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_store, "Thread", WrittenAtOnce)
        disk.install(patch)
        train_on(run, SHORT, Poison(SHORT, BAD, lambda model, loss: math.nan))
    assert sum(event.startswith("unlink") for event in disk.events) > 4, "nothing is pruned"
    return disk.states


class Replay:
    """A run folder that moves on by `pace` recorded states at each read of `verify`."""

    def __init__(self, path, states, monkeypatch, pace):
        self.run, self.states, self.pace = RunFolder(path), iter(states), pace
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.at = {}
        self.advance()
        for name in READERS:
            monkeypatch.setattr(verify, name, self.then_advance(getattr(verify, name)))

    def advance(self):
        for _ in range(self.pace):
            state = next(self.states, self.at)
            for name in {name for name in state if state[name] != self.at.get(name)}:
                (self.run.path / "new.tmp").write_bytes(state[name])
                os.replace(self.run.path / "new.tmp", self.run.path / name)
            for name in self.at.keys() - state.keys():
                (self.run.path / name).unlink()
            self.at = state

    def then_advance(self, read):
        def reading(*arguments, **more):
            found = read(*arguments, **more)
            self.advance()
            return found

        return reading

    def damaged(self):
        """file name -> complaint, for the files of a training; it has no tokenizer."""
        return {path.name: why for path, why in verify.verify_run(self.run, {}) if why and path != self.run.tokenizer}


@pytest.mark.parametrize("pace", [1, 2, 7])
def test_a_run_that_trains_is_found_sound(states, tmp_path, monkeypatch, pace):
    for start in range(0, len(states), 11):
        with monkeypatch.context() as patch:
            assert Replay(tmp_path / f"run-{start}", states[start:], patch, pace).damaged() == {}


def test_what_is_damaged_is_found_while_the_run_trains(states, tmp_path, monkeypatch):
    """A damaged checkpoint that the run keeps is named.

    One that will be pruned may be missed.
    """
    newest = max(name for name in states[-1] if name.endswith(".h5"))
    wrong = [state | {newest: state[newest][:-1] + b"?"} for state in states if newest in state]
    found = Replay(tmp_path / "run", wrong, monkeypatch, 1).damaged()
    assert list(found) == [newest.split("/")[1]]
    assert "its SHA-256 is not the one that it records" in found[newest.split("/")[1]]


def test_a_checkpoint_that_is_listed_and_not_there_is_missed_while_the_run_trains(states, tmp_path, monkeypatch):
    newest = max(name for name in states[-1] if name.endswith(".h5"))
    without = [{name: state[name] for name in state if name != newest} for state in states[-2:]]
    found = Replay(tmp_path / "run", without, monkeypatch, 1).damaged()
    assert list(found) == ["manifest.json"]
    assert f"lists {newest.split('/')[1]}, which is missing" in found["manifest.json"]


def test_a_damaged_log_is_named_however_fast_it_grows(tmp_path, monkeypatch):
    """A damaged log is named after a single read, though it grows between reads."""
    run, n_looks = make_run(tmp_path / "run"), 0

    def look(path):
        nonlocal n_looks
        n_looks += 1
        assert n_looks == 1
        append_metrics(path, {"step": 2})
        return read_metrics(path)

    run.metrics.write_text("no record\n")
    monkeypatch.setattr(verify, "read_metrics", look)
    found = {path: complaint for path, complaint in verify.verify_run(run, {}) if complaint}
    assert "line 1, is not the record of a step" in found[run.metrics]
