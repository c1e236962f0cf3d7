"""Bad checkpoints are noticed, and an older one is used instead.

Checkpoints may be damaged, poisoned, pruned, or written late.
"""

import json
import math
import os
import threading

import numpy as np
import pytest
from checkpoint_files import reseal
from reliability.faulty_disk import WrittenAtOnce
from reliability.small_training import (
    CONFIG,
    TOKENS,
    Poison,
    V,
    assert_same_bits,
    clean_state,
    events,
    fifty_fold,
    make_run,
    train_on,
    with_training,
)

from npllm.errors import ConfigError, DataError, ResourceError
from npllm.runs import checkpoint_store
from npllm.runs.checkpoint import load_checkpoint
from npllm.runs.checkpoint_store import MANIFEST, CheckpointStore, Entry, entry_of, kept
from npllm.runs.ledger import Ledger
from npllm.training.loop import NextTokenGradients, build_state, updates
from npllm.training.recovery import restore_newest

BLOCK = 512  # bytes: no larger than a sector, and less than a page or an HDF5 header
LONGER = with_training(CONFIG, steps=24)


@pytest.fixture
def stopped(tmp_path):
    """A run after step 20 of LONGER: it has checkpoints of steps 20, 16 and earlier."""
    run = make_run(tmp_path / "run")
    train_on(run, with_training(LONGER, steps=20))
    return run


def finish(run):
    """Continue to step 24; the state at the end."""
    return train_on(run, LONGER)


def open_store(run, keep=2):
    return CheckpointStore(run.checkpoints, keep=keep, every=CONFIG.train.checkpoint_every)


def rewrite_manifest_entry(path):
    """Make the manifest list a file that a test has changed as if it was written so."""
    manifest = path.parent / MANIFEST
    document = json.loads(manifest.read_text())
    document["checkpoints"][path.name] = vars(entry_of(path))
    manifest.write_text(json.dumps(document))


def with_nan(description, file):
    file["adam_m"][7] = np.nan


def with_other_weights(description, file):
    file["params"][:] = np.random.default_rng(0).standard_normal(file["params"].shape)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_nan, "is poisoned (adam_m holds values that are not finite)"),
        (with_other_weights, "is poisoned (its validation loss is "),
    ],
)
def test_04_a_poisoned_newest_checkpoint_gives_way_to_an_older_one(stopped, change, why):
    newest = stopped.checkpoints / "step-00000020.h5"
    reseal(newest, change)
    rewrite_manifest_entry(newest)
    state = finish(stopped)
    (event,) = events(stopped)
    assert (event["event"], event["checkpoint"]) == ("refused", newest.name)
    assert why in event["reason"]
    assert_same_bits(state, after_16(stopped.path.parent))


def test_04_a_poisoned_checkpoint_before_a_spike_is_not_rolled_back_to(tmp_path, monkeypatch):
    """A rollback checks the checkpoint that it restores, and refuses a poisoned one.

    The spike is in step 22. The checkpoint of step 20 is poisoned on the disk while the
    training runs; it is written at once, so that it exists by then.
    """
    monkeypatch.setattr(checkpoint_store, "Thread", WrittenAtOnce)
    run = make_run(tmp_path / "run")
    cursor = []

    def harm(model, loss):
        if not cursor:
            cursor.append(True)
            newest = run.checkpoints / "step-00000020.h5"
            reseal(newest, with_nan)
            rewrite_manifest_entry(newest)
        return fifty_fold(model, loss)

    train_on(run, LONGER, Poison(LONGER, [110], harm))
    refused, rollback = events(run)
    assert (refused["event"], refused["checkpoint"]) == ("refused", "step-00000020.h5")
    assert (rollback["event"], rollback["restored_step"]) == ("rollback", 16)
    assert rollback["step"] in (21, 22, 23)


def after_16(folder):
    """The final state of LONGER, continued from step 16 of `stopped`."""
    run = make_run(folder / "from 16")
    train_on(run, with_training(LONGER, steps=20))
    (run.checkpoints / "step-00000020.h5").unlink()
    return train_on(run, LONGER)


def test_09_a_bit_flipped_in_any_block_is_seen_and_the_older_checkpoint_is_used(stopped):
    newest = stopped.checkpoints / "step-00000020.h5"
    good = newest.read_bytes()
    rng = np.random.default_rng(0)
    store = open_store(stopped)
    blocks = range(0, len(good), BLOCK)
    assert len(blocks) == 33  # README says so
    for start in blocks:
        bad = bytearray(good)
        bad[start + rng.integers(min(BLOCK, len(good) - start))] ^= 1 << rng.integers(8)
        newest.write_bytes(bad)
        with pytest.raises(DataError, match=r"step-00000020\.h5 is not a whole checkpoint"):
            store.load(20)
    state = finish(stopped)
    (event,) = events(stopped)
    assert (event["event"], event["checkpoint"]) == ("refused", newest.name)
    assert "its SHA-256 is not the one that it records" in event["reason"]
    assert_same_bits(state, after_16(stopped.path.parent))


@pytest.mark.parametrize("length", [0, 1, 8, 100, 2000, -1])
def test_09_a_truncated_checkpoint_is_seen(stopped, length):
    newest = stopped.checkpoints / "step-00000020.h5"
    newest.write_bytes(newest.read_bytes()[:length])
    with pytest.raises(DataError, match=r"step-00000020\.h5 is not a whole checkpoint"):
        open_store(stopped).load(20)
    finish(stopped)
    assert [event["checkpoint"] for event in events(stopped)] == [newest.name]


def test_09_a_whole_checkpoint_in_place_of_the_one_that_was_written_is_refused(stopped):
    """A checkpoint of another run has a right SHA-256, but not the manifest's."""
    newest = stopped.checkpoints / "step-00000020.h5"
    reseal(newest, lambda description, _: description["counters"].update(next_sample=7))
    load_checkpoint(newest)
    finish(stopped)
    (event,) = events(stopped)
    assert "is not the file that the manifest lists" in event["reason"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 2}', b"\xff" * 100, None])
def test_09_a_manifest_that_is_damaged_or_gone_is_made_again_from_the_files(stopped, damage):
    manifest = stopped.checkpoints / MANIFEST
    before = open_store(stopped).entries
    manifest.unlink() if damage is None else manifest.write_bytes(damage)
    finish(stopped)
    refusals = [] if damage is None else [MANIFEST]
    assert [event["checkpoint"] for event in events(stopped)] == refusals
    after = open_store(stopped)
    assert not after.refused
    common = before.keys() & after.entries.keys()
    assert {step: after.entries[step] for step in common} == {step: before[step] for step in common}
    assert 20 in common


def test_09_without_one_whole_checkpoint_nothing_is_begun_and_nothing_changed(stopped):
    for path in stopped.checkpoints.glob("step-*.h5"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="has no checkpoint that can be used: .* Put one back from a copy"):
        finish(stopped)
    assert {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()} == before


def test_a_whole_checkpoint_under_another_name_is_not_used(stopped):
    newest = stopped.checkpoints / "step-00000020.h5"
    newest.rename(stopped.checkpoints / "step-00000022.h5")
    (stopped.checkpoints / MANIFEST).unlink()
    store = open_store(stopped)
    assert list(store.refused) == [stopped.checkpoints / "step-00000022.h5"]
    assert "holds the state after step 20" in next(iter(store.refused.values()))
    assert max(store.entries) == 16


def test_12_a_second_process_is_refused_and_a_dead_ones_lock_is_no_lock(stopped):
    with stopped.lock(), pytest.raises(ConfigError, match="is being trained by another process"):
        finish(stopped)
    finish(stopped)


def entry(step, val_loss=None):
    return Entry(step, "", val_loss, 0)


def test_19_the_last_the_best_and_an_anchor_are_kept():
    """A run of 2000 steps with a checkpoint every ten, evaluated every five; step 705,
    which is not scheduled, has the best."""
    entries = {}
    for step in range(0, 2001, 5):
        if step % 10 == 0 or step <= 705:
            entries[step] = entry(step, val_loss=abs(step - 705.0))
        stay = kept(entries, keep=3, every=10)
        entries = {step: entries[step] for step in sorted(stay)}
        assert {step for step in range(step - step % 10 - 20, step + 1, 10) if step >= 0} <= stay, "the last three"
        assert min(step, 705) in stay, "the best"
        assert len(stay) <= 3 + checkpoint_store.MOST_BESIDES_KEEP
        if step >= 110:
            old = any(100 <= step - other <= 210 and other % 10 == 0 for other in stay)
            assert old, "one at least 100 steps old, and not much older"


@pytest.mark.parametrize("every", [10, 7])
def test_19_a_checkpoint_made_in_passing_takes_no_place(every):
    """A checkpoint at step 303, where the run was stopped, displaces no other one. With
    one every 7 steps, the anchor of step 301 is another one than that of 303."""
    on_schedule = {step: entry(step) for step in range(0, 303, every)}
    with_extra = on_schedule | {303: entry(303)}
    assert kept(with_extra, keep=2, every=every) == kept(on_schedule, keep=2, every=every) | {303}
    following = {max(on_schedule) + every: entry(max(on_schedule) + every)}
    assert kept(with_extra | following, keep=2, every=every) == kept(on_schedule | following, keep=2, every=every)


def test_19_the_best_weights_outlive_the_checkpoints_after_them(tmp_path):
    """Evaluations are more frequent than checkpoints: the best may lie between two.
    A loss that is not finite is never the best."""
    config = with_training(LONGER, eval_every=1, checkpoint_every=8, keep=1)
    losses = [2.0 + abs(step - 11) for step in range(25)]
    losses[13:15] = [math.nan, -math.inf]
    run = make_run(tmp_path / "run")
    train_on(run, config, validate=lambda _: losses.pop(0))
    store = CheckpointStore(run.checkpoints, keep=1, every=8)
    assert (store.best().step, store.best().val_loss, store.refused) == (11, 2.0, {})
    assert load_checkpoint(store.path(11)).description["counters"]["updates"] == 11
    assert store.entries.keys() == {0, 11, 24}


def test_19_deletions_that_fail_lose_nothing(tmp_path, monkeypatch):
    """If no checkpoint can be deleted, the run says so and stops; all stay whole.

    Once deletions work again, the run ends with the same bits.
    """
    run, config = make_run(tmp_path / "run"), with_training(CONFIG, checkpoint_every=2, keep=2)
    real = os.unlink

    def refuse(path, **more):
        if "step-" in str(path) and os.path.exists(path) and not str(path).endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(ResourceError, match=r"step-0000000.\.h5 cannot be deleted \(Permission denied\)"):
            train_on(run, config)
    store = CheckpointStore(run.checkpoints, keep=2, every=2)
    assert not store.refused
    assert {0, max(store.entries), max(store.entries) - 2} <= set(store.entries)
    for step in store.entries:
        store.load(step)
    assert_same_bits(train_on(run, config), clean_state(config))


def test_20_what_is_saved_beside_the_training_is_the_state_of_that_moment(tmp_path, monkeypatch):
    """A checkpoint holds the state at the time of `save`, even if it is written later.

    Here the writing starts after further updates. A buffer that is shared with the
    training would hold their values.
    """
    gate, real = threading.Event(), CheckpointStore._write

    def late(self, *snapshot):
        gate.wait(60)
        real(self, *snapshot)

    monkeypatch.setattr(CheckpointStore, "_write", late)
    state, gradients = build_state(CONFIG, V), NextTokenGradients(CONFIG, TOKENS)
    with CheckpointStore(tmp_path, keep=1, every=1) as store:
        for update in updates(state, CONFIG, gradients):
            if update.step == 5:
                moment = {name: array.copy() for name, array in state.arrays().items()}
                counters = state.counters()
                store.save(state, val_loss=1.5)
            if update.step == 9:
                break
        gate.set()
    saved = load_checkpoint(store.path(5))
    assert saved.description["counters"] == counters
    assert saved.description["val_loss"] == 1.5
    for name, array in moment.items():
        np.testing.assert_array_equal(saved.arrays[name], array)
        assert not np.array_equal(array, state.arrays()[name])


def test_20_a_failure_beside_the_training_stops_it_at_the_next_step(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")

    def fail(self, *snapshot):
        raise ResourceError("no room")

    monkeypatch.setattr(CheckpointStore, "_write", fail)
    with pytest.raises(ResourceError, match="no room"):
        train_on(run, CONFIG)
    assert len(run.metrics.read_text().splitlines()) < CONFIG.train.checkpoint_every + 1


def test_a_run_that_begins_has_a_checkpoint_to_go_back_to(tmp_path):
    run = make_run(tmp_path / "run")
    state = train_on(run, CONFIG, Poison(CONFIG, [3], lambda model, loss: float("nan")))
    (event,) = events(run)
    assert (event["step"], event["restored_step"], event["skipped"][0]) == (2, 0, 0)
    assert_same_bits(state, clean_state(CONFIG, [tuple(event["skipped"])]))


def test_a_stage_without_validation_reads_a_checkpoint_with_a_validation_loss(stopped):
    """Without validation the recorded loss cannot be checked; nothing is refused."""
    state = build_state(LONGER, V)
    with CheckpointStore(stopped.checkpoints, keep=2, every=4) as store:
        assert any(entry.val_loss is not None for entry in store.entries.values())
        assert restore_newest(store, Ledger(stopped.ledger, writable=True), state, validate=None) == []
    assert state.step == 20
