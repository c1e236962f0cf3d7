"""What a run of a later stage starts from, copied into its folder: the run goes on when its
ancestors are gone.

    tokenizer.json      of the model that is trained
    models/NAME.h5      checkpoints
    data/NAME.jsonl     records, with their hashes beside them
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from npllm.data.records import write_records
from npllm.errors import DataError
from npllm.files.atomic import sync
from npllm.generation import check_writes
from npllm.model import GPT, ModelConfig
from npllm.runs.checkpoint import model_from_checkpoint
from npllm.runs.checksums import checked, write_checksums
from npllm.runs.run_folder import RunFolder, run_of
from npllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Copies:
    """The inputs of a later stage. config: complete, as the run keeps it. models: name ->
    checkpoint to copy. records: name -> dataclasses to write."""

    config: Any
    tokenizer: Tokenizer
    models: Mapping[str, Path]
    records: Mapping[str, Sequence]

    def write(self, draft: RunFolder, console: Console) -> Any:
        """Put them into the folder of a run that is being made. Returns the config."""
        (draft.path / "models").mkdir()
        for name, checkpoint in self.models.items():
            shutil.copyfile(checkpoint, model_file(draft, name))
            sync(model_file(draft, name))
        sync(draft.path / "models")
        for name, rows in self.records.items():
            write_records(record_file(draft, name), rows)
        write_checksums(draft.path / "data")
        self.tokenizer.save(draft.tokenizer)
        return self.config


def model_file(run: RunFolder, name: str) -> Path:
    """The checkpoint of a model that the run started from."""
    return run.path / "models" / f"{name}.h5"


def record_file(run: RunFolder, name: str) -> Path:
    """The file of records of that name."""
    return run.path / "data" / f"{name}.jsonl"


def checked_records(run: RunFolder, name: str) -> Path:
    """The same file. Raises DataError unless its hash is the one that the run started with."""
    return checked(record_file(run, name))


def load_model(run: RunFolder, name: str) -> GPT:
    """A model that the run started from."""
    return model_from_checkpoint(model_file(run, name))


def trained_checkpoint(path: Path) -> tuple[Path, Tokenizer]:
    """The checkpoint that a run (or a checkpoint in it) stands for, and its tokenizer."""
    run = run_of(path)
    return (Path(path) if Path(path).is_file() else run.newest_checkpoint()), run.load_tokenizer()


def policy_checkpoint(path: Path) -> tuple[Path, Tokenizer, ModelConfig]:
    """The same, and the shape of the model, for a stage whose model writes texts.

    Raises ConfigError for a run whose model judges them.
    """
    checkpoint, tokenizer = trained_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    check_writes(model, path)
    return checkpoint, tokenizer, model.config


def block_size_of(checkpoint: Path) -> int:
    """The longest sequence of the model in a checkpoint, in tokens."""
    return model_from_checkpoint(checkpoint).config.block_size


def check_same_tokenizer(one: Path, other: Path) -> None:
    """Raise DataError unless two runs write text with the same tokens."""
    if run_of(one).load_tokenizer().sha256() != run_of(other).load_tokenizer().sha256():
        raise DataError(
            f"{one} and {other} have different tokenizers; train the reward model from the run whose policy it judges."
        )
