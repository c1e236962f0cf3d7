"""Which checkpoint of a run is used: the best, the last, or the one of a step."""

from pathlib import Path

from npllm.errors import ConfigError
from npllm.files.user_path import user_path
from npllm.runs.checkpoint import checkpoint_path
from npllm.runs.checkpoint_store import best_of, read_entries
from npllm.runs.run_folder import open_run

MOST_DIGITS = 18  # of a step


def choose_checkpoint(path: Path, choice: str) -> Path:
    """Return the checkpoint file of a run that a word names.

    path: the folder of the run. choice: best = the one with the lowest validation loss,
    last, or the number of a step. Raises ConfigError for another word, for a step that
    the run has no checkpoint of, for the best where none has a validation loss, and
    where `path` is a checkpoint itself.
    """
    if user_path(path).is_file():
        raise ConfigError(f"{path} is a checkpoint already; leave out --checkpoint, or name the folder of its run.")
    run = open_run(path)
    last = run.newest_checkpoint()
    if choice == "last":
        return last
    is_step = choice.isdecimal() and len(choice) <= MOST_DIGITS
    if choice != "best" and not is_step:
        raise ConfigError(f"--checkpoint is {choice!r:.80}; give best, last, or the number of a step.")
    entries, _ = read_entries(run.checkpoints)
    there = {step: entry for step, entry in sorted(entries.items()) if checkpoint_path(run.checkpoints, step).exists()}
    best = best_of(there.values())
    if is_step and int(choice) not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise ConfigError(f"{path} has no checkpoint of step {int(choice)}; give one of these steps: {steps}.")
    if not is_step and best is None:
        raise ConfigError(f"No checkpoint of {path} has a validation loss; give last, or the number of a step.")
    return checkpoint_path(run.checkpoints, int(choice) if is_step else best.step)
