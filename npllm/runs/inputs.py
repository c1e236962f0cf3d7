"""The inputs of a later stage's run. They are copied into its folder, so the run does
not depend on the runs that it started from.

    tokenizer.json      of the model that is trained
    models/NAME.h5      checkpoints
    data/NAME.jsonl     records; data/SHA256SUMS has their hashes
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
from npllm.runs.run_folder import RunFolder, checkpoint_of, run_of
from npllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Copies:
    """The inputs of a later stage.

    config: the run's config, complete. models: name -> checkpoint to copy. records:
    name -> dataclasses to write.
    """

    config: Any
    tokenizer: Tokenizer
    models: Mapping[str, Path]
    records: Mapping[str, Sequence]

    def write(self, draft: RunFolder, console: Console) -> Any:
        """Write all inputs into the folder of a new run. Returns the config."""
        copy_models(draft, self.models)
        for name, rows in self.records.items():
            write_records(record_file(draft, name), rows)
        write_checksums(draft.path / "data")
        self.tokenizer.save(draft.tokenizer)
        return self.config


def copy_models(draft: RunFolder, checkpoints: Mapping[str, Path]) -> None:
    """Copy checkpoints into the folder of a new run, under the given names."""
    (draft.path / "models").mkdir()
    for name, checkpoint in checkpoints.items():
        shutil.copyfile(checkpoint, model_file(draft, name))
        sync(model_file(draft, name))
    sync(draft.path / "models")


def model_file(run: RunFolder, name: str) -> Path:
    """The path of the run's copy of an input model."""
    return run.path / "models" / f"{name}.h5"


def record_file(run: RunFolder, name: str) -> Path:
    """The path of the run's records of that name."""
    return run.path / "data" / f"{name}.jsonl"


def checked_records(run: RunFolder, name: str) -> Path:
    """The path of the run's records of that name. Raises DataError unless the file has
    the hash that was written when the run was made."""
    return checked(record_file(run, name))


def load_model(run: RunFolder, name: str) -> GPT:
    """An input model of the run."""
    return model_from_checkpoint(model_file(run, name))


def trained_checkpoint(path: Path) -> tuple[Path, Tokenizer]:
    """A checkpoint and its tokenizer. path: a run, which means its newest checkpoint,
    or a checkpoint file in a run."""
    checkpoint, run = checkpoint_of(path)
    return checkpoint, run.load_tokenizer()


def policy_checkpoint(path: Path) -> tuple[Path, Tokenizer, ModelConfig]:
    """`trained_checkpoint`, and the config of its model, which must be a language
    model.

    Raises ConfigError for a model that judges texts, such as a reward model.
    """
    checkpoint, tokenizer = trained_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    check_writes(model, path)
    return checkpoint, tokenizer, model.config


def block_size_of(checkpoint: Path) -> int:
    """The longest sequence of the model in a checkpoint, in tokens."""
    return model_from_checkpoint(checkpoint).config.block_size


def check_same_tokenizer(one: Path, other: Path) -> None:
    """Raise DataError unless two runs have the same tokenizer."""
    if run_of(one).load_tokenizer().sha256() != run_of(other).load_tokenizer().sha256():
        raise DataError(
            f"{one} and {other} have different tokenizers; train the reward model from the run whose policy it judges."
        )
