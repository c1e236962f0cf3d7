"""Training a run of any stage: the loop with checkpoints, recovery, log and live
view."""

from collections.abc import Callable
from math import isfinite
from typing import Any

from rich.console import Console

from npllm.distributed import team, together, world
from npllm.errors import Interrupted
from npllm.files.atomic import remove_temporary_files, sync
from npllm.output import shell_word
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.runs.config_file import rewrite_config
from npllm.runs.ledger import Ledger, Spike
from npllm.runs.metrics import append_metrics, drop_metrics_after, write_metrics_csv
from npllm.runs.run_folder import RunFolder
from npllm.runs.sample_log import Sample, append_sample, drop_samples_after
from npllm.training.config import LoopConfig
from npllm.training.interrupts import StopRequest, stop_on_signals
from npllm.training.job import Job
from npllm.training.length import RunLength
from npllm.training.loop import Update, updates
from npllm.training.orders import Finish, follow, give_state, is_stop_requested, whole_moments
from npllm.training.progress import ProgressView
from npllm.training.recovery import Recovery, restore_newest
from npllm.training.tensorboard import EventLog

FEWEST_UPDATES = 10  # a shorter run prints a warning
OnRecord = Callable[[dict[str, Any]], object]  # takes a line of metrics.jsonl


def train(
    run: RunFolder, config: LoopConfig, job: Job, console: Console, on_record: OnRecord = lambda record: None
) -> None:
    """Train to the last step, from the newest sound checkpoint or, if the run has none,
    from the given state.

    The caller holds the run's lock. Every rank of a job calls this function; rank 0
    leads. After SIGINT, SIGTERM or SIGHUP the state is saved and Interrupted is raised.
    on_record: called after each update, when its checkpoint, if it has one, is taken.
    What it raises ends the training; the run can be resumed.
    """
    with stop_on_signals() as stop, together(world()):
        if team().rank:
            follow(job.state, job.gradients, stop)
        else:
            _lead(run, config, job, console, on_record, stop)
            team().share(Finish())


def _lead(
    run: RunFolder, config: LoopConfig, job: Job, console: Console, on_record: OnRecord, stop: StopRequest
) -> None:
    """Do what `train` says, and tell the other ranks, if there are any, what to do."""
    state, validate = job.state, job.validate
    remove_temporary_files(run.path)
    ledger = Ledger(run.ledger, writable=True)
    with CheckpointStore(run.checkpoints, keep=config.train.keep, every=config.train.checkpoint_every) as store:
        with whole_moments(state, changes=True):
            refusals = restore_newest(store, ledger, state, validate)
        give_state(state)
        for reason in refusals:
            console.print(f"Refused: {reason}", soft_wrap=True)
        state.detector.levels = ledger.levels(config.spikes.min_history)
        recovery = Recovery(config.spikes, store, ledger, state, validate)
        _drop_after(run, state.step)
        run.metrics_table.unlink(missing_ok=True)  # only a finished run has one
        if not store.entries:
            # What a later spike's weights are held against until the first evaluation.
            val_loss = validate(state.model) if validate and config.spikes.enabled else None
            with whole_moments(state):
                store.save(state, val_loss)
        length = RunLength(config, ledger)
        _say_where_it_starts(run, config, length, state.step, console)
        with (
            EventLog(run.tensorboard, config.train.log, state.step) as event_log,
            ProgressView(console, length, state.step, tokens_per_byte=job.tokens_per_byte, shown=job.shown) as view,
        ):
            for event in updates(state, config, job.gradients, ledger.skipped, length):
                if isinstance(event, Spike):
                    with whole_moments(state, changes=True):
                        done = recovery.recover(event)
                    give_state(state)
                    if state.step < event.step - 1:
                        _drop_after(run, state.step)
                        event_log.go_back(state.step)
                    view.recovered(event, done, state.step)
                    continue
                store.check()
                record, is_best = measurements(event), False
                if validate and (length.is_over(event.step) or event.step % config.train.eval_every == 0):
                    record["val_loss"] = validate(state.model)
                    is_best = store.would_be_best(record["val_loss"])
                    _write_sample(run, job, record)
                    if not is_best and out_of_patience(config, store, length, event.step):
                        length.end_early(event.step)
                stopping, is_last = is_stop_requested(stop), length.is_over(event.step)
                append_metrics(run.metrics, record)
                event_log.append(record)
                view.show(event)
                if store.scheduled(event.step) or is_best or is_last or stopping:
                    sync(run.metrics)  # the log must reach the disk before the checkpoint
                    with whole_moments(state):
                        store.save(state, record.get("val_loss"))
                on_record(record)
                if stopping and not is_last:
                    store.wait()
                    raise _stopped(run, event.step)
    _end(run, config, length, store, console)


def _drop_after(run: RunFolder, step: int) -> None:
    """Remove from the logs what was measured after an update."""
    drop_metrics_after(run.metrics, step)
    drop_samples_after(run.sample_log, step)


def _write_sample(run: RunFolder, job: Job, record: dict[str, Any]) -> None:
    """Let the model write a text, if the job wants one. With a loss that is not finite
    there are no probabilities to draw from."""
    if job.sample is not None and isfinite(record["val_loss"]):
        append_sample(run.sample_log, Sample(record["step"], *job.sample(job.state.model)))


def _say_where_it_starts(run: RunFolder, config: LoopConfig, length: RunLength, step: int, console: Console) -> None:
    """Print a line for a run that is finished, that goes on, or that is too short to
    learn much."""
    steps = length.phase(step).end
    if length.is_over(step):
        line = (
            f"{run.path} is finished: all {step} updates are made. To train it further: npllm extend "
            f"{shell_word(run.path)} --minutes {config.train.minutes:g}. Its results once more:"
        )
        console.print(line, soft_wrap=True)
    elif step:
        console.print(f"{run.path}: going on after step {step}" + (f" of {steps}" if steps else ""), soft_wrap=True)
    elif steps is not None and steps < FEWEST_UPDATES:
        line = f"Fewer than {FEWEST_UPDATES} updates teach a model little; raise {config.lengthened_by}."
        console.print(line, soft_wrap=True)


def _stopped(run: RunFolder, step: int) -> Interrupted:
    return Interrupted(f"Stopped and saved after step {step}; go on with: npllm resume {shell_word(run.path)}")


def out_of_patience(config: LoopConfig, store: CheckpointStore, length: RunLength, step: int) -> bool:
    """Whether a run ends after an evaluation at this step that was not the best.

    The answer depends on the step and the checkpoint of the best evaluation only, so a
    run that was killed ends like one that was not.
    """
    if config.train.patience is None or length.is_over(step):
        return False
    best = store.best()
    return length.evaluations_since(best.step if best else 0, step, config.train.eval_every) >= config.train.patience


def _end(run: RunFolder, config: LoopConfig, length: RunLength, store: CheckpointStore, console: Console) -> None:
    """Write the files of a run that has ended: config.toml with the number of updates,
    if it was decided while it trained, and metrics.csv. Print why it ended early."""
    step = max(store.entries)
    if length.ended_early:
        console.print(_why_it_ended(config, store, step), soft_wrap=True)
    if length.has_budget or length.ended_early:
        rewrite_config(run.config, config.with_steps(step))
    write_metrics_csv(run.metrics_table, run.metrics)


def _why_it_ended(config: LoopConfig, store: CheckpointStore, step: int) -> str:
    """The sentence about a run that ended early."""
    best = store.best()
    lowest = f"the lowest one, {best.val_loss:.4f} at step {best.step}" if best else "infinity"
    return (
        f"Training ended early, at step {step}: the last {config.train.patience} validation losses are not below "
        f"{lowest} (train.patience)."
    )


def measurements(update: Update) -> dict[str, Any]:
    """The record of an update in metrics.jsonl."""
    record = dict(vars(update))
    tokens_per_s = record.pop("batch_tokens") / update.seconds
    figures = record.pop("figures")
    return record | {"tokens_per_s": tokens_per_s} | figures
