"""What the microscope looks at: a model with its optimiser, and one line of text."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from npllm.data.shards import read_shard
from npllm.errors import DataError
from npllm.files.user_path import user_path
from npllm.generation import check_writes
from npllm.model import GPT
from npllm.optim import OptimConfig, learning_rate
from npllm.optim.optimizers import Optimizer, build_optimizer
from npllm.runs.checkpoint import restore_checkpoint
from npllm.runs.inputs import policy_checkpoint
from npllm.runs.ledger import Ledger
from npllm.runs.run_folder import RunFolder, load, open_run, run_of
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig, load_recipe
from npllm.training.length import RunLength
from npllm.training.machine import limit_threads
from npllm.training.prepare import prepare_data
from npllm.training.stage import load_run_config
from npllm.training.stages import load_stage, stage_in
from npllm.training.state import LoopState

FEWEST_TOKENS, USUAL_TOKENS, MOST_TOKENS = 8, 24, 64  # of a line that is chosen, and of --text
SEARCHED = 1 << 13  # tokens of the validation text in which a line is chosen
MOST_ROWS = 8  # sequences of the batch whose kernels are timed


class Subject(NamedTuple):
    """name: of the run, folder or recipe. model_state: in words. text: the line, and
    ids: its tokens. optimizer: in the state of the run. lr: of its next update or,
    where the schedule has ended at zero, the peak. rows: of a micro-batch."""

    name: str
    model_state: str
    model: GPT
    tokenizer: Tokenizer
    text: str
    ids: list[int]
    optimizer: Optimizer
    lr: float
    grad_clip: float
    rows: int

    @property
    def tokens(self) -> np.ndarray:
        """The tokens as a batch of one row, (1, T)."""
        return np.array([self.ids], np.int32)


def subject_of(name: str, text: str | None, report: Callable[[str], None]) -> Subject:
    """Return the subject of a run, of a checkpoint in it, of another folder that
    `npllm.load` reads, or of a recipe.

    A recipe's model has its initial weights. text: None = a line of the validation
    text. report: called with a line about what is done. Raises ConfigError or DataError
    for a run, a recipe or a text that cannot be used.
    """
    path = user_path(name)
    if not path.exists() or path.suffix == ".toml":
        return _of_recipe(name, text, report)
    folder = RunFolder(path if path.is_dir() else run_of(path).path)
    return _of_run(name, path, text) if folder.config.exists() else _of_model(name, path, text)


def _of_recipe(name: str, text: str | None, report: Callable[[str], None]) -> Subject:
    config = load_recipe(name)
    limit_threads(config.train.threads)
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.val_shard.parent.mkdir()
        prepare_data(config.data, run, report)
        state = load_stage("pretrain").job(run, config).state
        return _subject(name, "with its initial weights", run, config, state, text)


def _of_run(name: str, path: Path, text: str | None) -> Subject:
    checkpoint, *_ = policy_checkpoint(path)
    run = open_run(run_of(path).path)
    stage = stage_in(run.config)
    config = load_run_config(run, stage.config_type)
    limit_threads(config.train.threads)
    state = stage.job(run, config).state
    restore_checkpoint(checkpoint, state)
    return _subject(name, f"after {state.step:,} updates", run, config, state, text)


def _of_model(name: str, path: Path, text: str | None) -> Subject:
    """The subject of a folder that holds a model and no run, with a new AdamW."""
    model, tokenizer = load(path)
    check_writes(model, path)
    if text is None:
        raise DataError(f"{name} has no validation text; give a line with --text.")
    ids = _encoded(text, tokenizer, model.config.block_size)
    optim = OptimConfig()
    optimizer = build_optimizer(model, optim)
    return Subject(
        name, "as its files describe it", model, tokenizer, text, ids, optimizer, optim.lr, optim.grad_clip, MOST_ROWS
    )


def _subject(
    name: str, model_state: str, run: RunFolder, config: LoopConfig, state: LoopState, text: str | None
) -> Subject:
    model, tokenizer = next(iter(state.model.parts().values())), run.load_tokenizer()
    text = _line(run, tokenizer, model.config.block_size) if text is None else text
    ids = _encoded(text, tokenizer, model.config.block_size)
    phase = RunLength(config, Ledger(run.ledger)).phase(state.step)
    n_updates = None if phase.end is None else phase.end - phase.first
    lr = learning_rate(state.step - phase.first, n_updates, config.optim) or config.optim.lr
    rows = min(config.batch.micro_size, MOST_ROWS)
    return Subject(name, model_state, model, tokenizer, text, ids, state.optimizer, lr, config.optim.grad_clip, rows)


def _encoded(text: str, tokenizer: Tokenizer, block_size: int) -> list[int]:
    """Return the tokens of a text. Raises DataError for too few or too many."""
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise DataError("The text has fewer than two tokens, so there is none to predict; give a longer --text.")
    if len(ids) > block_size:
        raise DataError(f"The text has {len(ids)} tokens, but the model reads {block_size}; give a shorter --text.")
    if len(ids) > MOST_TOKENS:
        raise DataError(f"The text has {len(ids)} tokens, but the page shows {MOST_TOKENS}; give a shorter --text.")
    return ids


def _line(run: RunFolder, tokenizer: Tokenizer, block_size: int) -> str:
    """Return a line of the validation text: the first one of a good length or, if there
    is none, the start of the text."""
    if not run.val_shard.exists():
        raise DataError(f"{run.path} has no validation text; give a line with --text.")
    tokens = read_shard(run.val_shard).tokens[:SEARCHED]
    most = min(USUAL_TOKENS, block_size)
    for line in tokenizer.decode(tokens).splitlines():
        if min(FEWEST_TOKENS, most) <= len(tokenizer.encode(line)) <= most:
            return line
    return tokenizer.decode(tokens[:most])
