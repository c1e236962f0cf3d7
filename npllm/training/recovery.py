"""Recovery: restoring the newest sound checkpoint after a stop, a crash or a loss
spike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

from npllm.errors import DataError, TrainingError
from npllm.model import Model
from npllm.runs.checkpoint import restore_checkpoint
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.runs.ledger import Ledger, Spike
from npllm.training.spikes import ROLLBACK_PERIOD, SpikeConfig
from npllm.training.state import LoopState

Validate = Callable[[Model], float]  # the validation loss of a model, in nats; always on the same text

# A rise of the validation loss, as a share of the last checkpoint's, that sound
# training does not make.
RUINED = 0.2
# nats. Equal weights have equal losses; another CPU changes them by less than a
# hundredth of this.
MUCH_WORSE = 0.1


def restore_newest(store: CheckpointStore, ledger: Ledger, state: LoopState, validate: Validate | None) -> list[str]:
    """Set the state to the newest checkpoint that is whole and sound and that no
    rollback has undone. Checkpoints that a rollback has undone are deleted. A run
    without any checkpoint keeps its initial state.

    Returns why each refused checkpoint was refused, and records it in the ledger.
    Raises DataError, and leaves the run unchanged, when there are checkpoints but none
    of them can be used.
    """
    belonging = [step for step, entry in store.entries.items() if ledger.belongs(step, entry.rollbacks)]
    there_were_some = bool(store.entries or store.refused)
    found = next(_usable(store, sorted(belonging, reverse=True), state, validate), None)
    if found is None and there_were_some:
        reason = next(iter(store.refused.values()), "rollbacks have undone all of them.")
        raise DataError(
            f"{store.folder} has no checkpoint that can be used: {reason} Put one back from a copy, or empty the "
            "folder to start again."
        )
    store.drop(set(store.entries) - set(belonging))
    store.prune()
    state.rollbacks = len(ledger.rollbacks)
    return record_refusals(store, ledger)


def record_refusals(store: CheckpointStore, ledger: Ledger) -> list[str]:
    """Record in the ledger the checkpoints that the store has refused since the last
    call. Returns the reasons."""
    reasons = list(store.refused.values())
    for path, reason in store.refused.items():
        ledger.refused(path, reason)
    store.refused.clear()
    return reasons


@dataclass(frozen=True)
class Recovery:
    """The reaction to a loss spike, and the parts of the run that it needs."""

    config: SpikeConfig
    store: CheckpointStore
    ledger: Ledger
    state: LoopState
    validate: Validate | None

    def recover(self, spike: Spike) -> str:
        """Set the state to one that training can continue from. Returns a sentence that
        says what was done; it is empty where the same was done just before.

        After a first spike the run goes back to a checkpoint and skips the data. A
        second spike in the same place met other data, so the data are not the cause. If
        the weights are sound, only this update is left out; after min_history updates
        left out in a row, their losses and norms become the detector's window. If the
        weights are ruined or a value is not finite, an older checkpoint is restored.

        Raises TrainingError as `roll_back` does.
        """
        if in_the_same_place(spike, self.config, self.ledger) and self._is_sound(spike):
            return self._leave_out(spike)
        restored, (start, end) = self.roll_back(spike)
        return f"Back to step {restored}, without the samples {start:,} to {end - 1:,}."

    def _is_sound(self, spike: Spike) -> bool:
        """Whether all values are finite, and the validation loss has not risen by more
        than RUINED since the last scheduled checkpoint that has one."""
        if not (isfinite(spike.loss) and isfinite(spike.grad_norm)) or self.state.not_finite():
            return False
        self.store.wait()
        scheduled = [entry for step, entry in sorted(self.store.entries.items()) if self.store.scheduled(step)]
        records = [entry.val_loss for entry in scheduled if entry.val_loss is not None]
        return self.validate is None or not records or self.validate(self.state.model) <= records[-1] * (1.0 + RUINED)

    def _leave_out(self, spike: Spike) -> str:
        """Skip this batch and change nothing else. Returns what `recover` returns."""
        self.ledger.left_out(spike)
        self.state.model.grads.flat[:] = 0
        self.state.next_sample = spike.samples[1]
        self.state.detector.levels = self.ledger.levels(self.config.min_history)
        in_a_row = len(self.ledger.left_out_at[spike.step])
        if in_a_row == 1:
            return "Other data met the same spike, and the weights are sound: only this update is left out."
        if in_a_row == self.config.min_history:
            return f"{in_a_row} updates in a row were left out: from now on their loss counts as normal for these data."
        return ""

    def roll_back(self, spike: Spike) -> tuple[int, tuple[int, int]]:
        """Restore the checkpoint before a spike, and skip the samples from there to
        `margin` samples after the spiking batch. Returns the step restored and that
        range of samples.

        After a second spike in the same place an older checkpoint is restored. Raises
        TrainingError after max_rollbacks, or when no checkpoint can be used.
        """
        config, store, ledger, state = self.config, self.store, self.ledger, self.state
        recent = [event for event in ledger.rollbacks if event["step"] > spike.step - ROLLBACK_PERIOD]
        if len(recent) >= config.max_rollbacks:
            ledger.gave_up(spike)
            raise TrainingError(
                f"Gave up at step {spike.step} after {len(recent)} rollback{'' if len(recent) == 1 else 's'}: "
                f"{spike.reason}; lower optim.lr in config.toml or, if the samples in {ledger.path} are sound, set "
                "spikes.enabled to false or raise spikes.max_rollbacks, and resume."
            )
        store.wait()
        steps = [step for step in sorted(store.entries, reverse=True) if store.scheduled(step)]
        if in_the_same_place(spike, config, ledger):
            before_last = ledger.rollbacks[-1]["restored_step"]
            steps = [step for step in steps if step < before_last] or steps
        restored = next(_usable(store, steps, state, self.validate), None)
        record_refusals(store, ledger)
        if restored is None:
            ledger.gave_up(spike)
            raise TrainingError(
                f"Gave up at step {spike.step}: {spike.reason}, and no checkpoint before it can be used; lower "
                "optim.lr or, if the data are sound, set spikes.enabled to false, and start a new run."
            )
        skipped = (state.next_sample, spike.samples[1] + config.margin)
        ledger.rolled_back(spike, restored, skipped)
        store.drop({step for step in store.entries if step > restored})
        state.rollbacks = len(ledger.rollbacks)
        state.detector.levels = ledger.levels(config.min_history)
        return restored, skipped


def in_the_same_place(spike: Spike, config: SpikeConfig, ledger: Ledger) -> bool:
    """Whether a spike is at most min_history updates after the last one that was rolled
    back. Before that the detector's window has not filled again."""
    return bool(ledger.rollbacks) and spike.step <= ledger.rollbacks[-1]["step"] + config.min_history


def _usable(store: CheckpointStore, steps: list[int], state: LoopState, validate: Validate | None) -> Iterator[int]:
    """The steps whose checkpoints are whole and sound. The state is set to each one
    before it is yielded. The others are refused."""
    for step in steps:
        path = store.path(step)
        try:
            record = restore_checkpoint(path, state, listed_sha256=store.entries[step].sha256)
            if validate and record is not None and not (loss := validate(state.model)) <= record + MUCH_WORSE:
                raise DataError(
                    f"{path} is poisoned (its validation loss is {loss:.4f}, but was {record:.4f} when it was saved); "
                    "use another checkpoint."
                )
        except DataError as error:
            store.refuse(step, str(error))
        else:
            yield step
