"""Going back: the newest checkpoint that can be trusted, after a stop, a crash or a loss spike."""

from collections.abc import Callable, Iterator

from npllm.errors import DataError, TrainingError
from npllm.model import GPT
from npllm.training.checkpoint import restore_checkpoint
from npllm.training.checkpoint_store import CheckpointStore
from npllm.training.ledger import Ledger
from npllm.training.spikes import Spike, SpikeConfig
from npllm.training.state import LoopState

Validate = Callable[[GPT], float]  # the validation loss of a model, in nats; always on the same text

MUCH_WORSE = 0.1  # nats: equal weights have equal losses, and another CPU changes less than a hundredth of this


def restore_newest(store: CheckpointStore, ledger: Ledger, state: LoopState, validate: Validate) -> list[str]:
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
    store.thin_out()
    state.rollbacks = len(ledger.rollbacks)
    return record_refusals(store, ledger)


def record_refusals(store: CheckpointStore, ledger: Ledger) -> list[str]:
    """Enter in the ledger which checkpoints the store has refused since this was last called, and why."""
    reasons = list(store.refused.values())
    for path, reason in store.refused.items():
        ledger.refused(path, reason)
    store.refused.clear()
    return reasons


def roll_back(
    spike: Spike, config: SpikeConfig, store: CheckpointStore, ledger: Ledger, state: LoopState, validate: Validate
) -> None:
    """Restore the checkpoint before a spike and mark the samples from there to `margin` behind the spike as skipped.

    A second spike in the same place means that the checkpoint itself was no good: an older one is used. Raises
    TrainingError after max_rollbacks, or when there is no checkpoint left.
    """
    if len(ledger.rollbacks) >= config.max_rollbacks:
        ledger.gave_up(spike)
        raise TrainingError(
            f"Gave up at step {spike.step} after {len(ledger.rollbacks)} rollbacks: {spike.reason}; look at the "
            f"samples in {ledger.path}, lower optim.lr, or raise spikes.max_rollbacks in config.toml and resume."
        )
    store.wait()
    steps = [step for step in sorted(store.entries, reverse=True) if store.scheduled(step)]
    if in_the_same_place(spike, config, ledger):
        before_last = ledger.rollbacks[-1]["restored_step"]
        steps = [step for step in steps if step < before_last] or steps
    restored = next(_usable(store, steps, state, validate), None)
    record_refusals(store, ledger)
    if restored is None:
        ledger.gave_up(spike)
        raise TrainingError(
            f"Gave up at step {spike.step}: {spike.reason}, and no checkpoint before it can be used; lower optim.lr or "
            "lengthen optim.warmup_steps, and begin again."
        )
    ledger.rolled_back(spike, restored, (state.next_sample, spike.samples[1] + config.margin))
    store.drop({step for step in store.entries if step > restored})
    state.rollbacks = len(ledger.rollbacks)


def in_the_same_place(spike: Spike, config: SpikeConfig, ledger: Ledger) -> bool:
    """Whether the run has not come far beyond the last spike: so far that the detector would be armed anew."""
    return bool(ledger.rollbacks) and spike.step <= ledger.rollbacks[-1]["step"] + config.min_history


def _usable(store: CheckpointStore, steps: list[int], state: LoopState, validate: Validate) -> Iterator[int]:
    """The steps whose checkpoints can be trusted, each with the state set to it; the others are refused."""
    for step in steps:
        path = store.path(step)
        try:
            record = restore_checkpoint(path, state, listed_sha256=store.entries[step].sha256)
            if record is not None and not (loss := validate(state.model)) <= record + MUCH_WORSE:
                raise DataError(
                    f"{path} is poisoned (its validation loss is {loss:.4f}, and was {record:.4f}); use another one."
                )
        except DataError as error:
            store.refuse(step, str(error))
        else:
            yield step
