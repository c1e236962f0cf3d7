"""A run with loss spikes is ended at every event on the disk, then resumed.

Whatever the event, and whether the process was killed or the power failed, the resumed
run ends like the undisturbed one: weights, moments, counters, log and ledger are the
same. A real run writes its checkpoints in a thread. Here they are written in the main
thread, so that each event has the same number in every run.
"""

import itertools
import math
import shutil
import sys

import proofs
import pytest
from reliability.faulty_disk import Crashed, FaultyDisk, WrittenAtOnce
from reliability.small_training import (
    CONFIG,
    Poison,
    assert_same_bits,
    events,
    fifty_fold,
    make_run,
    skipped_ranges,
    train_on,
    with_training,
)

from npllm.errors import ResourceError
from npllm.runs import checkpoint_store
from npllm.runs.checkpoint import checkpoint_path, sealed_sha256
from npllm.runs.checkpoint_store import CheckpointStore, read_manifest
from npllm.runs.metrics import read_metrics

SHORT = with_training(CONFIG, steps=10, checkpoint_every=3, keep=2)
NOT_FINITE, FINITE = {21, 33}, {52}  # two spikes in step 8, the second goes back further; an update left out

# `all` takes every event; `some`, in the default run of the tests, takes every fifth.
some_or_all = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"])

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's events are told apart by /proc/self/fd")


@pytest.fixture(autouse=True)
def in_order(monkeypatch):
    monkeypatch.setattr(checkpoint_store, "Thread", WrittenAtOnce)


class Bad(Poison):
    """Gradients in which some samples are not finite, and one counts fifty times."""

    def __init__(self):
        super().__init__(SHORT, NOT_FINITE | FINITE, self.spoil)

    def spoil(self, model, loss):
        return math.nan if NOT_FINITE & set(self.batches[-1]) else fifty_fold(model, loss)


class Outcome:
    """The results of a run that are compared: state, ledger and log, without times."""

    def __init__(self, run, state):
        self.state = state
        self.ledger = events(run, "rollback", "left_out")
        clocked = {"seconds", "tokens_per_s"}
        self.metrics = [
            {name: value for name, value in record.items() if name not in clocked}
            for record in read_metrics(run.metrics)
        ]

    def assert_same(self, other):
        assert_same_bits(self.state, other.state)
        assert self.ledger == other.ledger
        assert self.metrics == other.metrics


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_store, "Thread", WrittenAtOnce)
        run = make_run(tmp_path_factory.mktemp("undisturbed") / "run")
        disk = FaultyDisk(run.path)
        with pytest.MonkeyPatch.context() as disk_patch:
            disk.install(disk_patch)
            outcome = Outcome(run, train_on(run, SHORT, Bad()))
    assert [event.get("restored_step") for event in outcome.ledger] == [6, 3, None]
    return outcome, disk.events


def crash(tmp_path, kind, event, power_fails=False):
    """End a new run at this event; its folder and the disk."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = make_run(tmp_path / "run")
    disk = FaultyDisk(run.path, fail_at=event, kind=kind)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        with pytest.raises(Crashed):
            train_on(run, SHORT, Bad())
    if power_fails:
        disk.power_cut()
    return run, disk


def assert_goes_on(run, outcome, what):
    """Resume the run and assert that it ends like the undisturbed one.

    what: what was done to the run, for the error message.
    """
    try:
        assert_the_manifest_lists_whole_files_only(run)
        Outcome(run, train_on(run, SHORT, Bad())).assert_same(outcome)
    except BaseException as error:
        raise AssertionError(what) from error
    proofs.count(proofs.FAULTS)


def assert_the_manifest_lists_whole_files_only(run):
    entries, complaint = read_manifest(run.checkpoints)
    assert complaint is None
    for entry in entries:
        assert sealed_sha256(checkpoint_path(run.checkpoints, entry.step)) == entry.sha256


def test_the_undisturbed_run_does_to_the_disk_what_a_disk_can_do(undisturbed):
    _, done = undisturbed
    kinds = {event.split()[0] for event in done}
    assert kinds == {"write", "fsync", "replace", "unlink"}
    counts = [len(done)] + [sum(event.startswith(kind) for event in done) for kind in ("write", "replace")]
    assert counts == [121, 39, 22]  # README says so
    assert "write ledger.jsonl" in done
    assert "replace manifest.json" in done
    assert "unlink step-00000003.h5" in done


@some_or_all
@pytest.mark.parametrize("power_fails", [False, True], ids=["07 killed", "08 power cut"])
def test_07_08_ended_at_any_event_and_resumed(tmp_path, undisturbed, power_fails, every):
    """The events include every phase of a rollback (06).

    The run may end before or after the ledger's line, before each deletion of a
    checkpoint, and before the log is cut.
    """
    outcome, done = undisturbed
    for event in range(0, len(done), every):
        run, _ = crash(tmp_path, "crash", event, power_fails)
        assert_goes_on(run, outcome, f"ended before event {event}, {done[event]}")


@some_or_all
def test_07_killed_in_the_middle_of_a_write(tmp_path, undisturbed, every):
    outcome, done = undisturbed
    for event in [i for i, what in enumerate(done) if what.startswith("write")][::every]:
        run, _ = crash(tmp_path, "torn", event)
        assert_goes_on(run, outcome, f"torn at event {event}, {done[event]}")


@some_or_all
def test_08_a_file_never_has_its_name_before_its_content(tmp_path, undisturbed, every):
    """A file must be synchronised before it gets its name.

    Some file systems bring names to the disk first, and contents only at an fsync. This
    disk does the same: a name without an fsync of the content shows as an empty file.
    """
    outcome, done = undisturbed
    for event in [i for i, what in enumerate(done) if what.startswith("replace")][::every]:
        run, disk = crash(tmp_path, "crash", event)
        for folder in disk.names:
            disk._sync_folder(folder)
        disk.power_cut()
        assert_goes_on(run, outcome, f"ended before event {event}, {done[event]}")


@some_or_all
def test_10_a_disk_that_fills_up_at_any_event(tmp_path, undisturbed, every):
    """On a full disk the training stops and says so, and older checkpoints are whole.

    Once there is free space, the run ends with the same bits.
    """
    outcome, done = undisturbed
    for event in [i for i, what in enumerate(done) if what.startswith(("write", "fsync", "replace"))][:: 3 * every]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = make_run(tmp_path / "run")
        disk = FaultyDisk(run.path, fail_at=event, kind="full")
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            with pytest.raises(ResourceError, match="cannot be written .No space left on device"):
                train_on(run, SHORT, Bad())
        assert not list(run.path.rglob(".*.tmp")), done[event]
        store = CheckpointStore(run.checkpoints, keep=2, every=3)
        assert not store.refused
        for step in store.entries:
            store.load(step)
        assert_goes_on(run, outcome, f"full from event {event} on, {done[event]}")


@some_or_all
def test_06_no_sample_is_trained_on_twice_or_lost(tmp_path, undisturbed, every):
    """The run is killed at each event around both rollbacks.

    The batches of the surviving steps, in order, must hold every sample id once, except
    the skipped ones.
    """
    _, done = undisturbed
    around = [i for i, what in enumerate(done) if what.endswith("ledger.jsonl")]
    for event in sorted({i + offset for i in around for offset in range(-3, 9)} & set(range(len(done))))[::every]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = make_run(tmp_path / "run")
        disk, gradients, by_step = FaultyDisk(run.path, fail_at=event), Bad(), {}

        def record(model, ids, step, gradients=gradients, by_step=by_step):
            by_step[step] = ids.tolist()  # a repeated step overwrites its first batch
            return gradients(model, ids, step)

        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            with pytest.raises(Crashed):
                train_on(run, SHORT, record)
        train_on(run, SHORT, record)
        skipped = {i for start, end in skipped_ranges(run) for i in range(start, end)}
        trained = list(itertools.chain(*(by_step[step] for step in range(10))))
        assert trained == [i for i in range(trained[-1] + 1) if i not in skipped]
        proofs.count(proofs.FAULTS)
