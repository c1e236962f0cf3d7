"""`npllm extend`: a finished run trains further.

The learning rate of a finished run has decayed. So the updates that are added have a
schedule of their own, with a warm-up and a decay (`length.py`). The moments of the
optimiser and the order of the data go on.
"""

from math import isfinite
from pathlib import Path

from rich.console import Console

from npllm.distributed import world
from npllm.errors import ConfigError, DataError
from npllm.files.strict_json import check_fields
from npllm.output import shell_word
from npllm.runs.checkpoint import load_checkpoint
from npllm.runs.ledger import Ledger
from npllm.runs.run_folder import RunFolder
from npllm.training.length import RunLength
from npllm.training.stage import Stage, load_run_config, train_run
from npllm.training.stages import stage_in
from npllm.training.train import OnRecord


def extend_run(run: RunFolder, minutes: float, console: Console, on_record: OnRecord = lambda record: None) -> None:
    """Train a finished run of any stage for some minutes more.

    on_record: see `train`. Raises ConfigError for a run that is not finished.
    """
    if not (minutes > 0 and isfinite(minutes)):
        raise ConfigError(f"minutes is {minutes}; set it above 0.")
    stage = stage_in(run.config)
    world().agree(lambda: _record(run, stage, minutes))
    train_run(run, console, stage, on_record)


def _record(run: RunFolder, stage: Stage, minutes: float) -> None:
    """Record the extension in the ledger of a finished run. Rank 0 does so."""
    if world().rank:
        return
    with run.lock():
        ledger = Ledger(run.ledger, writable=True)
        step, seconds = _trained(run.newest_checkpoint())
        if not RunLength(load_run_config(run, stage.config_type), ledger).is_over(step):
            raise ConfigError(f"{run.path} is not finished; finish it first: npllm resume {shell_word(run.path)}.")
        ledger.extended(step, float(minutes), seconds)


def _trained(checkpoint: Path) -> tuple[int, float]:
    """The number of updates before a checkpoint, and the seconds that they took."""
    counters = load_checkpoint(checkpoint).description["counters"]
    try:
        check_fields(counters, {"updates": int, "seconds": float})
    except ValueError as error:
        raise DataError(f"{checkpoint} has unusable counters ({error}); use another checkpoint.") from error
    return counters["updates"], float(counters["seconds"])
