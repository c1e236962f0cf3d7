"""Planted loss spikes: detection, rollback, skipped data, clean final weights."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
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
    skipped_ranges,
    train_on,
    with_spikes,
    with_training,
)

from npllm.errors import TrainingError
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.runs.ledger import Ledger, Spike
from npllm.runs.sample_log import read_samples
from npllm.training.length import Phase
from npllm.training.loop import NextTokenGradients, build_state, make_update, updates
from npllm.training.recovery import Recovery, Validate, in_the_same_place, restore_newest

BAD = 57  # a sample of step 14; the checkpoint before it is that of step 12


@pytest.mark.parametrize("bad", [[BAD], [BAD, BAD + 48], [20]], ids=["one", "two", "in the ramp"])
def test_01_after_a_spike_the_bits_are_those_of_a_clean_run_without_that_data(tmp_path, bad):
    run, gradients = make_run(tmp_path / "run"), Poison(CONFIG, bad, fifty_fold)
    state = train_on(run, CONFIG, gradients)
    rollbacks = events(run)
    assert [event["event"] for event in rollbacks] == ["rollback"] * len(bad)
    assert_same_bits(state, clean_state(CONFIG, [tuple(event["skipped"]) for event in rollbacks]))
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, 21))
    assert all(record["loss"] < 5 for record in metrics), "the spike is in the ledger and not in the log"
    assert state.rollbacks == len(bad)


def test_01_a_rollback_removes_the_samples_of_the_lost_updates(tmp_path):
    """Step 13 is evaluated, lost, and made again with other data and other weights."""
    run, gradients = make_run(tmp_path / "run"), Poison(CONFIG, [BAD], fifty_fold)
    written = []

    def sample(model):
        written.append(hashlib.sha256(model.params.flat).hexdigest())
        return "", written[-1]

    train_on(run, with_training(CONFIG, eval_every=1), gradients, sample=sample)
    samples = read_samples(run.sample_log)
    assert [each.step for each in samples] == list(range(1, 21))
    assert [each.text for each in samples] == written[:12] + written[13:]
    assert written[12] != written[13]


def test_01_what_the_ledger_says_is_what_happened(tmp_path):
    run, gradients = make_run(tmp_path / "run"), Poison(CONFIG, [BAD], fifty_fold)
    state = train_on(run, CONFIG, gradients)
    (event,) = events(run)
    cursor = sum(len(batch) for batch in gradients.batches[:12])
    assert event["restored_step"] == 12
    assert event["step"] == 14
    assert event["samples"] == [gradients.batches[13][0], gradients.batches[13][-1] + 1]
    assert event["samples"][0] <= BAD < event["samples"][1]
    assert event["skipped"] == [cursor, event["samples"][1] + CONFIG.spikes.margin]
    assert event["loss"] > 50
    assert event["tokens"] == sum(len(batch) for batch in gradients.batches[:13]) * CONFIG.model.block_size
    assert "the loss is" in event["reason"]
    seen = [i for batch in gradients.batches[14:] for i in batch]
    assert seen == list(range(event["skipped"][1], state.next_sample)), "the data behind the skipped range, each once"


def test_01_only_the_loss_or_only_the_gradient_is_enough():
    for harm, what in ((lambda model, loss: 50 * loss, "the loss is 1"), (only_gradient, "the loss is 2")):
        gradients = Poison(CONFIG, [BAD], harm)
        state = build_state(CONFIG, V)
        last = [event for event, _ in zip(updates(state, CONFIG, gradients), range(14), strict=False)][-1]
        assert isinstance(last, Spike)
        assert what in last.reason


def only_gradient(model, loss):
    model.grads.flat[:] *= 50
    return loss


@pytest.mark.parametrize("factor", [1000, 3000])
def test_an_update_a_thousand_times_too_long_shows_in_the_next_batch(factor):
    state, gradients = build_state(CONFIG, V), NextTokenGradients(CONFIG, TOKENS)
    for _ in range(13):
        make_update(state, CONFIG, gradients, Phase(0, CONFIG.train.steps))
    gradients(state.model, np.arange(10**6, 10**6 + 6), 13)
    state.optimizer.step(grad_clip=1.0, lr=factor * CONFIG.optim.lr)
    assert isinstance(make_update(state, CONFIG, gradients, Phase(0, CONFIG.train.steps)), Spike)


def nan_loss(model, loss):
    return math.nan


def infinite_gradient(model, loss):
    model.grads.flat[3] = np.inf
    return loss


@pytest.mark.parametrize("harm", [nan_loss, infinite_gradient])
@pytest.mark.parametrize("step", [0, 1, 9])
def test_02_what_is_not_finite_is_caught_before_the_update(harm, step):
    """The first step is checked too, long before there is a window to compare with."""
    state = build_state(CONFIG, V)
    gradients = NextTokenGradients(CONFIG, TOKENS)
    for _ in range(step):
        make_update(state, CONFIG, gradients, Phase(0, CONFIG.train.steps))
    before = {name: array.copy() for name, array in state.arrays().items()}
    counters = state.counters()
    spike = make_update(state, CONFIG, Poison(CONFIG, range(10**3), harm), Phase(0, CONFIG.train.steps))
    assert isinstance(spike, Spike)
    assert spike.step == step + 1
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, before[name])
    assert state.counters() == counters, "the spike is not in the window"


@pytest.mark.parametrize("buffer", ["adam_m", "adam_v"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_02_moments_that_are_not_finite_are_caught_before_the_update(buffer, value):
    state = build_state(CONFIG, V)
    make_update(state, CONFIG, NextTokenGradients(CONFIG, TOKENS), Phase(0, CONFIG.train.steps))
    state.arrays()[buffer][-1] = value
    before = state.model.params.flat.copy()
    spike = make_update(state, CONFIG, NextTokenGradients(CONFIG, TOKENS), Phase(0, CONFIG.train.steps))
    assert isinstance(spike, Spike)
    assert spike.reason == f"{buffer} holds values that are not finite"
    np.testing.assert_array_equal(state.model.params.flat, before)


@pytest.mark.parametrize("harm", [nan_loss, infinite_gradient])
def test_02_a_run_recovers_from_what_is_not_finite(tmp_path, harm):
    run = make_run(tmp_path / "run")
    state = train_on(run, CONFIG, Poison(CONFIG, [BAD], harm))
    (event,) = events(run)
    assert None in (event["loss"], event["grad_norm"]), "JSON has no NaN"
    assert_same_bits(state, clean_state(CONFIG, [tuple(event["skipped"])]))


def test_a_second_spike_in_the_same_place_with_other_data_goes_back_no_further(tmp_path):
    """Batches behind the skipped samples are bad too, and the weights are sound.

    The held-out text shows that they are sound, so the bad batches are left out one by
    one. A second rollback would lose steps for nothing.
    """
    run, gradients = make_run(tmp_path / "run"), Poison(CONFIG, range(BAD, BAD + 16), fifty_fold)
    state = train_on(run, CONFIG, gradients)
    found = events(run)
    assert [event["event"] for event in found] == ["rollback", "left_out", "left_out"]
    assert found[0]["restored_step"] == 12
    assert found[1]["step"] == found[2]["step"]
    assert found[1]["samples"][1] == found[2]["samples"][0]
    assert state.rollbacks == 1
    assert_same_bits(state, clean_state(CONFIG, skipped_ranges(run)))


def test_weights_that_are_ruined_are_not_trained_on(tmp_path):
    """If the restored weights are bad, a second spike there goes back further.

    An update after the checkpoint of step 12 ruins the weights, before the rollback and
    after it. The held-out text shows it, so the second rollback restores step 8.
    """
    run = make_run(tmp_path / "run")

    class Ruin(Poison):
        def __call__(self, model, ids, step):
            result = super().__call__(model, ids, step)
            if step == 13 and len(events(run)) < 2:
                model.params.flat[:] *= 30.0
                result = result._replace(loss=50 * result.loss)
            return result

    state = train_on(run, CONFIG, Ruin(CONFIG, [], None))
    found = events(run)
    assert [event["event"] for event in found] == ["rollback", "rollback"]
    assert [event["restored_step"] for event in found] == [12, 8]
    assert_same_bits(state, clean_state(CONFIG, skipped_ranges(run)))


@pytest.mark.parametrize("end", [None, 17], ids=["in one go", "stopped on the way"])
def test_a_lasting_change_of_the_data_is_learnt_from(tmp_path, end):
    """Losses that stay high become the new level after `min_history` left-out updates.

    A run that is stopped while updates are left out ends with the same bits.
    """
    run, config = make_run(tmp_path / "run"), with_training(CONFIG, steps=30)
    harm = lambda model, loss: loss + 20.0  # noqa: E731
    gradients = Poison(config, range(BAD, 10**6), harm)
    if end:
        with pytest.raises(StopAsked):
            train_on(run, config, stopping(gradients, at=end))
    state = train_on(run, config, gradients)
    kinds = [event["event"] for event in events(run)]
    assert kinds == ["rollback"] + ["left_out"] * config.spikes.min_history
    assert state.step == 30
    assert min(state.detector.losses) > 20.0
    assert_same_bits(state, train_on(make_run(tmp_path / "whole"), config, Poison(config, range(BAD, 10**6), harm)))


class StopAsked(Exception):
    """Stops the training of a test, as suddenly as a kill."""


def stopping(gradients, at: int):
    """The same gradients; to ask for those of update `at` raises StopAsked."""

    def call(model, ids, step):
        if step == at:
            raise StopAsked
        return gradients(model, ids, step)

    return call


def test_rollbacks_are_counted_within_ten_thousand_updates(tmp_path):
    run = make_run(tmp_path / "run")
    ledger = Ledger(run.ledger, writable=True)
    for step in (20, 10_010):  # the first is just too old to count
        ledger.rolled_back(Spike(step, 9.0, 1.0, 0, (0, 1), "planted"), 0, (0, 0))
    state, config = build_state(CONFIG, V), with_spikes(CONFIG, max_rollbacks=2).spikes
    with CheckpointStore(run.checkpoints, keep=2, every=4) as store:
        store.save(state, None)
        spike = Spike(10_020, math.nan, 1.0, 0, (0, 1), "the loss is nan")
        recovery = Recovery(config, store, ledger, state, None)
        recovery.recover(spike)
        assert len(ledger.rollbacks) == 3
        with pytest.raises(TrainingError, match=r"after 2 rollbacks: the loss is nan; .*spikes\.enabled"):
            recovery.recover(spike)


def test_a_later_spike_elsewhere_goes_back_to_the_checkpoint_before_it(tmp_path):
    run = make_run(tmp_path / "run")
    train_on(run, CONFIG, Poison(CONFIG, [30, 90], fifty_fold))
    first, second = events(run)
    assert first["restored_step"] < second["restored_step"]
    assert second["step"] - second["restored_step"] <= CONFIG.train.checkpoint_every


def test_a_later_spike_may_go_back_to_the_same_checkpoint(tmp_path):
    """Step 10 is the newest checkpoint for both spikes, which lie in two places.

    The second lies more than `min_history` steps behind the first, so it is no spike in
    the same place and the run need not go back further.
    """
    run, config = make_run(tmp_path / "run"), with_training(CONFIG, checkpoint_every=10)
    state = train_on(run, config, Poison(config, [45, 100], fifty_fold))
    first, second = events(run)
    assert (first["restored_step"], second["restored_step"]) == (10, 10)
    assert second["step"] > first["step"] + config.spikes.min_history
    assert_same_bits(state, clean_state(config, [tuple(event["skipped"]) for event in (first, second)]))


def test_05_when_every_batch_is_bad_training_gives_up(tmp_path):
    run = make_run(tmp_path / "run")
    config = with_spikes(CONFIG, max_rollbacks=3)
    message = r"Gave up at step \d+ after 3 rollbacks: the loss is nan; .*ledger\.jsonl"
    with pytest.raises(TrainingError, match=message) as caught:
        train_on(run, config, Poison(config, range(BAD, 10**6), nan_loss))
    assert caught.value.exit_code == 4
    assert [event["event"] for event in events(run)] == ["rollback"] * 3 + ["gave_up"]

    again = train_on(run, config)  # with good data: every checkpoint can still be used
    ranges = [tuple(event["skipped"]) for event in events(run, "rollback")]
    assert_same_bits(again, clean_state(config, ranges))


def test_05_a_run_that_is_bad_from_the_first_sample_on(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(TrainingError, match="after 10 rollbacks: the loss is nan"):
        train_on(run, CONFIG, Poison(CONFIG, range(10**6), nan_loss))
    assert [event["restored_step"] for event in events(run, "rollback")] == [0] * 10


def test_a_run_that_may_not_roll_back_stops_at_once(tmp_path):
    run = make_run(tmp_path / "run")
    config = with_spikes(CONFIG, max_rollbacks=0)
    with pytest.raises(TrainingError, match="after 0 rollbacks"):
        train_on(run, config, Poison(config, [BAD], fifty_fold))
    assert [event["event"] for event in events(run)] == ["gave_up"]


def test_without_a_detector_a_spike_is_an_update_like_any_other(tmp_path):
    run, config = make_run(tmp_path / "run"), with_spikes(CONFIG, enabled=False)
    state = train_on(run, config, Poison(config, [BAD], fifty_fold))
    assert events(run) == []
    assert state.step == 20
    assert state.model.params.flat.tobytes() != clean_state(config).model.params.flat.tobytes()


def test_a_rate_that_makes_the_weights_diverge_from_the_start_is_no_new_level_of_the_data(tmp_path):
    """A diverging run gives up: its high losses are no new level of the data.

    That holds before the first evaluation too, where the loss of the initial weights is
    the standard.
    """
    config = with_training(replace(CONFIG, optim=replace(CONFIG.optim, lr=30.0, min_lr=30.0)), eval_every=20)
    run = make_run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"Gave up at step \d+ after 10 rollbacks: .* lower optim\.lr"):
        train_on(run, config)
    assert not events(run, "left_out")


AT_14 = Spike(14, math.nan, 1.0, 0, (56, 60), "the loss is nan")


def behind_a_rollback(run, losses: dict[int, float | None], validate: Validate | None = None) -> Recovery:
    """The recovery of a run that a spike in step 14 has set back to step 12.

    losses: step -> validation loss (or None) of a checkpoint after that step.
    """
    state, ledger = build_state(CONFIG, V), Ledger(run.ledger, writable=True)
    store = CheckpointStore(run.checkpoints, keep=9, every=4)
    for step, loss in losses.items():
        state.optimizer.updates = step
        store.save(state, loss)
    store.wait()
    ledger.rolled_back(AT_14, 12, (48, 63))
    return Recovery(CONFIG.spikes, store, ledger, state, validate)


def test_the_same_place_ends_where_the_detector_is_armed_anew(tmp_path):
    ledger = behind_a_rollback(make_run(tmp_path / "run"), {}).ledger
    same = {step: in_the_same_place(replace(AT_14, step=step), CONFIG.spikes, ledger) for step in (14, 18, 19)}
    assert same == {14: True, 18: True, 19: False}


def test_what_lies_behind_the_restored_checkpoint_is_given_up(tmp_path):
    """A rollback discards the later checkpoints and the level of the left-out updates.

    Otherwise a later spike would go back to a checkpoint of the discarded steps.
    """
    recovery = behind_a_rollback(make_run(tmp_path / "run"), {4: None, 8: None, 12: None})
    for _ in range(CONFIG.spikes.min_history):
        recovery.ledger.left_out(replace(AT_14, loss=20.0))
    recovery.state.detector.levels = recovery.ledger.levels(CONFIG.spikes.min_history)
    assert recovery.state.detector.levels.keys() == {13}
    assert recovery.recover(AT_14).startswith("Back to step 8,")
    assert recovery.store.entries.keys() == {4, 8}
    assert sorted(path.name for path in recovery.store.folder.glob("*.h5")) == ["step-00000004.h5", "step-00000008.h5"]
    assert recovery.state.detector.levels == {}


@pytest.mark.parametrize("loss", [None, 0.5], ids=["made by a stop", "the best"])
def test_only_a_scheduled_checkpoint_is_rolled_back_to(tmp_path, loss):
    """A run that nobody stopped lacks the checkpoint of the stop, and must end the
    same."""
    recovery = behind_a_rollback(make_run(tmp_path / "run"), {12: None, 16: None, 19: loss})
    assert recovery.recover(replace(AT_14, step=21)).startswith("Back to step 16,")
    assert recovery.store.entries.keys() == {12, 16}


@pytest.mark.parametrize(("loss", "done"), [(3.5, "only this update is left out"), (3.7, "Back to step 4,")])
def test_weights_are_sound_up_to_a_fifth_above_the_newest_record(tmp_path, loss, done):
    """The newest record is that of a scheduled checkpoint. Step 13 may be there only
    because somebody stopped the run."""
    recovery = behind_a_rollback(make_run(tmp_path / "run"), {4: 5.0, 12: 3.0, 13: 9.0}, lambda model: loss)
    assert done in recovery.recover(replace(AT_14, loss=20.0))


@pytest.mark.parametrize(("loss", "refusals"), [(3.05, 0), (3.15, 1)])
def test_a_checkpoint_may_be_a_little_worse_than_its_record(tmp_path, loss, refusals):
    """On another CPU the same weights have a slightly different validation loss."""
    recovery = behind_a_rollback(make_run(tmp_path / "run"), {8: None, 12: 3.0})
    found = restore_newest(recovery.store, recovery.ledger, recovery.state, lambda model: loss)
    assert len(found) == refusals
    assert recovery.state.step == (8 if refusals else 12)


def test_a_resumed_run_knows_of_the_rollbacks_behind_it(tmp_path):
    """The run is resumed from a checkpoint that is older than the rollbacks.

    If they were not counted, checkpoints that it saves from now on would be discarded.
    """
    recovery = behind_a_rollback(make_run(tmp_path / "run"), {12: None, 16: None})
    restore_newest(recovery.store, recovery.ledger, recovery.state, validate=None)
    assert recovery.state.step == 12
    assert recovery.state.rollbacks == 1
    assert recovery.store.entries.keys() == {12}
