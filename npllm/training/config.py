"""The config of a pretraining run: dataclasses, filled from a TOML file and from the
command line.

A recipe is a TOML file. Its tables are the sections below and its keys are their
fields. The same code parses and checks its values and command-line arguments. The
values of the recipe are the defaults of the command line.
"""

import codecs
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import ClassVar, Literal, Self

from npllm.data.sources import ReadingOptions
from npllm.data.text_files import IGNORED
from npllm.errors import ConfigError
from npllm.files.user_path import user_path
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.runs.arguments import nearest
from npllm.runs.config_file import load_config
from npllm.training.spikes import SpikeConfig

LARGEST_COUNT = 1 << 31  # of steps, samples, tokens: their sums stay far below 2^63


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training and validation text."""

    source: tuple[str, ...] = ("stdlib",)
    """stdlib, pydoc, or files, folders and glob patterns"""
    tokenizer: str = "bpe"
    """char, byte, bpe (trained on the text), or the path of a tokenizer.json"""
    vocab_size: int = 2048
    """tokens in a trained bpe vocabulary"""
    split: Literal["gpt2", "cl100k", "llama3"] = "gpt2"
    """how a trained bpe tokenizer, or a .tiktoken file, cuts text into pieces"""
    val_fraction: float = 0.05
    """share held out for validation: of the files or, if few, of each file"""
    separator: str | None = None
    """text between documents, such as <|endoftext|>; none = one document per file"""
    field: str | None = None
    """key of .jsonl lines, or column of .csv files, that holds the text"""
    encoding: str = "utf-8"
    """of the files that are not UTF-8, such as latin-1, cp1252 or utf-16"""
    ignore: tuple[str, ...] = IGNORED
    """patterns of files and folders to leave out; hidden ones always are"""

    def __post_init__(self):
        _check_encoding(self.encoding)
        for name, value in (("separator", self.separator), ("field", self.field)):
            if value is None:
                continue
            if not value:
                raise ConfigError(f"data.{name} is ''; give at least one character.")
            if value.encode(errors="ignore").decode() != value:
                raise ConfigError(f"data.{name} is {value!r:.80}, which is not valid Unicode; give valid text.")
        if not self.source:
            raise ConfigError("data.source is empty; name stdlib, pydoc, or at least one file.")
        for name in (*self.source, *self.ignore, self.tokenizer):
            if name.startswith("-"):  # an argument like this is an option
                raise ConfigError(f"data names the file {name!r}, which looks like an option; write ./{name}")
            if name.encode(errors="ignore").decode() != name:
                raise ConfigError(f"data names the file {name!r}, which is not valid Unicode; rename the file.")
        if self.split != "gpt2" and self.tokenizer in ("char", "byte"):
            raise ConfigError(
                f"data.split is {self.split!r}, but a {self.tokenizer} tokenizer has no split; remove it."
            )
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction is {self.val_fraction}; set it between 0 and 1.")

    @property
    def reading(self) -> ReadingOptions:
        """How the sources are read."""
        return ReadingOptions(self.separator, self.field, self.encoding, self.ignore)


def _check_encoding(name: str) -> None:
    try:
        "a".encode(name)  # refuses codecs that are not for text, such as base64
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise ConfigError(
            f"data.encoding is {name!r:.80}, which Python does not know; give the name of one, such as latin-1."
        ) from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, evaluation, checkpoints, seed, dtype and threads."""

    steps: int | None = None
    """updates; none = as many as fit into `minutes`"""
    minutes: float = 3.0
    """time budget of the updates if steps is none; the number of steps is decided while
    the run goes on"""
    eval_every: int = 100
    """steps between evaluations on a sample of the validation text (at the end: all)"""
    patience: int | None = None
    """end after so many evaluations without a lower validation loss; none = do not"""
    checkpoint_every: int = 200
    """steps between checkpoints; the lowest validation loss so far saves one, too"""
    keep: int = 2
    """newest checkpoints to keep, besides the best and one at least 100 steps old"""
    seed: int = 0
    """seed of the initial weights, the order of the data and dropout"""
    dtype: Literal["float32", "float64", "bf16"] = "float32"
    """of the arrays; bf16 = float32 with bfloat16 products where the CPU has them"""
    threads: int | None = None
    """threads of the kernels; none = one per core"""
    log: Literal["tensorboard"] | None = None
    """write the metrics for TensorBoard as well; metrics.jsonl and .csv are always"""

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps is {self.steps}; set it to at least 1.")
        if not self.minutes > 0:
            raise ConfigError(f"train.minutes is {self.minutes}; set it above 0.")
        for name in ("eval_every", "patience", "checkpoint_every", "keep"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"train.{name} is {value}; set it to at least 1.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"train.seed is {self.seed}; set it to at least 0 and below 2^64.")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The sections that every stage has."""

    lengthened_by: ClassVar[str] = "train.steps"  # the fields that make a run longer
    has_budget: ClassVar[bool] = False  # whether train.minutes counts if train.steps is None
    fits_batch: ClassVar[bool] = False  # whether the stage chooses batch.size if it is None
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)

    def __post_init__(self):
        for section, table in asdict(self).items():
            for name, value in table.items():
                if isinstance(value, float) and not isfinite(value):
                    raise ConfigError(f"{section}.{name} is {value}; set it to a finite number.")
                if isinstance(value, int) and name != "seed" and value > LARGEST_COUNT:
                    raise ConfigError(f"{section}.{name} is {value}; set it to at most {LARGEST_COUNT}.")
        if self.batch.size is None and not self.fits_batch:
            raise ConfigError("batch.size is none, which only sft, reward, dpo and ppo accept; set batch.size.")

    def with_steps(self, steps: int) -> Self:
        """This config with train.steps set."""
        return replace(self, train=replace(self.train, steps=steps))


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """The config of a pretraining run."""

    lengthened_by = "train.steps or train.minutes"
    has_budget = True
    data: DataConfig = field(default_factory=DataConfig)
    model: Architecture = field(default_factory=Architecture)


def load_recipe(recipe: str) -> RunConfig:
    """The config of a recipe. recipe: the name of an embedded recipe, or a TOML
    file."""
    return load_config(_find_recipe(recipe), RunConfig)


def _find_recipe(recipe: str) -> Path:
    folder = resources.files("npllm") / "recipes"
    names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    if recipe in names:
        return Path(str(folder / f"{recipe}.toml"))
    if (path := user_path(recipe)).is_file():
        return path
    raise ConfigError(
        f"{recipe} is neither a TOML file nor a recipe{nearest(recipe, names)}; the recipes are {', '.join(names)}."
    )
