"""Going back: the newest checkpoint that can be trusted, after a stop, a crash or a loss spike."""

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

RUINED = 0.2  # of a checkpoint's validation loss: a rise that no sound stretch of training makes
MUCH_WORSE = 0.1  # nats: equal weights have equal losses, and another CPU changes less than a hundredth of this


def restore_newest(store: CheckpointStore, ledger: Ledger, state: LoopState, validate: Validate | None) -> list[str]:
    """Set the state to the newest checkpoint that is whole and sound, of those that belong to the run's present past;
    a run without any begins at its beginning. What belongs to a past that was given up is deleted.

    Returns why each checkpoint was refused that was; the ledger says so too. Raises DataError, with the run as it was,
    when there are checkpoints and none of them can be used.
    """
    belonging = [step for step, entry in store.entries.items() if ledger.belongs(step, entry.rollbacks)]
    there_were_some = bool(store.entries or store.refused)
    found = next(_usable(store, sorted(belonging, reverse=True), state, validate), None)
    if found is None and there_were_some:
        reason = next(iter(store.refused.values()), "all belong to a past that was given up.")
        raise DataError(
            f"{store.folder} has no checkpoint that can be used: {reason} Put one back from a copy, or empty the "
            "folder to begin again."
        )
    store.drop(set(store.entries) - set(belonging))
    store.prune()
    state.rollbacks = len(ledger.rollbacks)
    return record_refusals(store, ledger)


def record_refusals(store: CheckpointStore, ledger: Ledger) -> list[str]:
    """Enter in the ledger which checkpoints the store has refused since this was last called, and why."""
    reasons = list(store.refused.values())
    for path, reason in store.refused.items():
        ledger.refused(path, reason)
    store.refused.clear()
    return reasons


@dataclass(frozen=True)
class Recovery:
    """What is done about a loss spike, with the parts of a run that it takes."""

    config: SpikeConfig
    store: CheckpointStore
    ledger: Ledger
    state: LoopState
    validate: Validate | None

    def recover(self, spike: Spike) -> str:
        """Make the state one that can train on, and say in a sentence what was done ("" = the same as just before).

        A first spike: back to a checkpoint, and on without that data. A second one in the same place met other data, so
        the data are not to blame. Where the weights are not either, only this update is left out, and after min_history
        of them in a row their loss and norm count as the level of the data from now on. Where the weights are ruined,
        or anything is not finite, an older checkpoint is used. Raises TrainingError as `roll_back` does.
        """
        if in_the_same_place(spike, self.config, self.ledger) and self._is_sound(spike):
            return self._leave_out(spike)
        restored, (start, end) = self.roll_back(spike)
        return f"Back to step {restored}, without the samples {start:,} to {end - 1:,}."

    def _is_sound(self, spike: Spike) -> bool:
        """Whether nothing is wrong with the weights and moments that saw this spike."""
        if not (isfinite(spike.loss) and isfinite(spike.grad_norm)) or self.state.not_finite():
            return False
        self.store.wait()
        records = [entry.val_loss for _, entry in sorted(self.store.entries.items()) if entry.val_loss is not None]
        return self.validate is None or not records or self.validate(self.state.model) <= records[-1] * (1.0 + RUINED)

    def _leave_out(self, spike: Spike) -> str:
        """Go on behind this batch, with everything else as it is."""
        self.ledger.left_out(spike)
        self.state.model.grads.flat[:] = 0
        self.state.next_sample = spike.samples[1]
        self.state.detector.levels = self.ledger.levels(self.config.min_history)
        in_a_row = len(self.ledger.left_out_at[spike.step])
        if in_a_row == 1:
            return "Other data met the same spike, and the weights are sound: only this update is left out."
        if in_a_row == self.config.min_history:
            return f"{in_a_row} updates in a row were left out, so this is how the data are now: going on with them."
        return ""

    def roll_back(self, spike: Spike) -> tuple[int, tuple[int, int]]:
        """Restore the checkpoint before a spike and mark the samples from there to `margin` behind it as skipped.
        Returns the step restored, and that range of samples.

        A second spike in the same place means that the checkpoint itself was no good: an older one is used. Raises
        TrainingError after max_rollbacks, or when there is no checkpoint left.
        """
        config, store, ledger, state = self.config, self.store, self.ledger, self.state
        recent = [event for event in ledger.rollbacks if event["step"] > spike.step - ROLLBACK_PERIOD]
        if len(recent) >= config.max_rollbacks:
            ledger.gave_up(spike)
            raise TrainingError(
                f"Gave up at step {spike.step} after {len(recent)} rollbacks: {spike.reason}; look at the samples in "
                f"{ledger.path}, lower optim.lr, raise spikes.max_rollbacks, or set spikes.enabled to false, in "
                "config.toml, and resume."
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
                "optim.lr or lengthen optim.warmup_steps, and begin again."
            )
        skipped = (state.next_sample, spike.samples[1] + config.margin)
        ledger.rolled_back(spike, restored, skipped)
        store.drop({step for step in store.entries if step > restored})
        state.rollbacks = len(ledger.rollbacks)
        state.detector.levels = ledger.levels(config.min_history)
        return restored, skipped


def in_the_same_place(spike: Spike, config: SpikeConfig, ledger: Ledger) -> bool:
    """Whether the run has not come far beyond the last spike: so far that the detector would be armed anew."""
    return bool(ledger.rollbacks) and spike.step <= ledger.rollbacks[-1]["step"] + config.min_history


def _usable(store: CheckpointStore, steps: list[int], state: LoopState, validate: Validate | None) -> Iterator[int]:
    """The steps whose checkpoints can be trusted, each with the state set to it; the others are refused."""
    for step in steps:
        path = store.path(step)
        try:
            record = restore_checkpoint(path, state, listed_sha256=store.entries[step].sha256)
            if validate and record is not None and not (loss := validate(state.model)) <= record + MUCH_WORSE:
                raise DataError(
                    f"{path} is poisoned (its validation loss is {loss:.4f}, and was {record:.4f}); use another one."
                )
        except DataError as error:
            store.refuse(step, str(error))
        else:
            yield step
