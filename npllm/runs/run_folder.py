"""The paths of the files of a run, and loading them; saving and loading a model.

A model that a program trained itself has no run. `save` writes it into a folder with
two files, because a text needs the tokenizer as well as the model:

    model.h5          a checkpoint of the weights alone
    tokenizer.json

Whatever starts from a model takes such a folder in place of a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from npllm.data.shards import TokenShard, read_shard
from npllm.errors import ConfigError, DataError
from npllm.files.folders import make_folder
from npllm.files.locks import hold_folder
from npllm.files.user_path import user_path
from npllm.interop import huggingface
from npllm.model import GPT
from npllm.output import shell_word
from npllm.runs.checkpoint import checkpoint_files, model_from_checkpoint
from npllm.runs.model_file import write_model
from npllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder. The properties only name files; the methods read
    them."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def train_shard(self) -> Path:
        return self.path / "data" / "train.h5"

    @property
    def val_shard(self) -> Path:
        return self.path / "data" / "val.h5"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics_table(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def sample_log(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def saved_model(self) -> Path:
        """The checkpoint that `save` writes, in a folder that is no run."""
        return self.path / "model.h5"

    def newest_checkpoint(self) -> Path:
        """The path of the newest checkpoint. Raises DataError when there is none."""
        if _holds_saved_model(self):
            return self.saved_model
        found = checkpoint_files(self.checkpoints)
        if not found:
            raise DataError(
                f"{self.path} has no checkpoint; train the run first (npllm resume {shell_word(self.path)})."
            )
        return found[-1]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock (locks.py), so that no other process trains it. Raises
        ConfigError when another process holds the lock."""
        busy = f"{self.path} is being trained by another process; wait until it ends or stop it."
        with hold_folder(self.path, busy):
            yield

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return Tokenizer.load(self.tokenizer)

    def load_shards(self) -> tuple[TokenShard, TokenShard]:
        """The shards of training and validation tokens. Raises DataError unless both
        were made with the run's tokenizer."""
        digest = self.load_tokenizer().sha256()
        shards = tuple(read_shard(path) for path in (self.train_shard, self.val_shard))
        for shard, path in zip(shards, (self.train_shard, self.val_shard), strict=True):
            if shard.tokenizer_sha256 != digest:
                raise DataError(f"{path} was not made with {self.tokenizer}; put back the file of the run.")
        return shards


def open_run(path: str | Path) -> RunFolder:
    """The run at `path`. Raises DataError when there is none."""
    run = RunFolder(user_path(path))
    if not run.path.is_dir():
        raise DataError(f"{path} is not a folder; name the folder of a run, such as runs/default.")
    if not run.config.exists() and (run.path / huggingface.CONFIG).is_file():
        imported = f"npllm import {shell_word(path)} --out RUN"
        raise DataError(f"{path} is a folder of Hugging Face; make a model of it first ({imported}), and name RUN.")
    if not run.config.exists():
        raise DataError(f"{path} is not a run (config.toml is missing); name the folder of a run.")
    return run


def _holds_saved_model(folder: RunFolder) -> bool:
    return folder.saved_model.is_file() and not folder.config.exists()


def run_of(path: str | Path) -> RunFolder:
    """The run of a path, which is its folder or a checkpoint file in it. It may also be
    a folder that `save` wrote, or the model in it.

    The file may be a link to one in a run, and so may the folder that it is in. Raises
    DataError when there is no run.
    """
    path = user_path(path)
    if not path.is_file():
        saved = RunFolder(path)
        return saved if _holds_saved_model(saved) else open_run(path)
    for name in (path.absolute(), path.resolve()):
        run, saved = RunFolder(name.parent.parent), RunFolder(name.parent)
        if run.config.exists():
            return run
        if name == saved.saved_model and _holds_saved_model(saved):
            return saved
    raise DataError(f"{path} is not in the folder of a run; name a run, or a file in its folder checkpoints.")


def checkpoint_of(path: str | Path) -> tuple[Path, RunFolder]:
    """The checkpoint that a path names, and its run. path: of a run, which means its
    newest checkpoint, or of a checkpoint file in a run."""
    run = run_of(path)
    return (user_path(path) if user_path(path).is_file() else run.newest_checkpoint()), run


def load(path: str | Path, *, dtype: str | None = None) -> tuple[GPT, Tokenizer]:
    """The model and tokenizer of a run folder, of one checkpoint file in it, of a
    folder that `save` wrote, or of a folder of Hugging Face.

    dtype: "float32", or "bf16" to multiply by weights rounded to bfloat16; None = the
    dtype of training. Raises DataError for files that are missing or damaged, or do not
    belong together.
    """
    if (user_path(path) / huggingface.CONFIG).is_file():
        return huggingface.load(path, dtype=dtype or "float32")
    checkpoint, run = checkpoint_of(path)
    model, tokenizer = model_from_checkpoint(checkpoint, dtype=dtype), run.load_tokenizer()
    if tokenizer.vocab_size != model.config.vocab_size:
        raise DataError(
            f"{run.tokenizer} has {tokenizer.vocab_size} tokens, but {checkpoint} was trained with "
            f"{model.config.vocab_size}; put back the file of the run."
        )
    return model, tokenizer


def save(model: GPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a model and its tokenizer into a folder, which `load` reads.

    path: the folder; it is made if it does not exist, and files that an earlier `save`
    wrote are replaced. The state of an optimiser is not saved. Raises ConfigError for a
    folder that cannot be made or is a run, and for the tokenizer of another model, and
    ResourceError where the disk is full.
    """
    folder = RunFolder(user_path(path))
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, but the model was made for {model.config.vocab_size}; "
            "save a model with the tokenizer that it was trained with."
        )
    if folder.config.exists():
        raise ConfigError(f"{path} is a run, whose files must stay as they are; choose another folder.")
    make_folder(folder.path)
    tokenizer.save(folder.tokenizer)
    write_model(folder.saved_model, model)
