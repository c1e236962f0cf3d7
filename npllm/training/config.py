"""Everything that decides a run: dataclasses, filled from a TOML file and from the command line.

A recipe is a TOML file whose tables are the sections below and whose keys are their fields. Its values are parsed,
typed and checked by the same code as command-line arguments, and then are the defaults of the user's own.
"""

from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import ClassVar, Literal, Self

from npllm.errors import ConfigError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.runs.config_file import load_config, nearest
from npllm.training.spikes import SpikeConfig

LARGEST_COUNT = 1 << 31  # of steps, samples, tokens: far from where sums of them leave 64 bits


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn from."""

    source: tuple[str, ...] = ("stdlib",)
    """stdlib, pydoc, or files, folders and glob patterns"""
    tokenizer: str = "bpe"
    """char, byte, bpe (trained on the training text), or the path of a tokenizer.json"""
    vocab_size: int = 2048
    """tokens in a trained bpe vocabulary"""
    val_fraction: float = 0.05
    """share held out for validation: of the files or, where they are few, of the characters in each"""
    separator: str | None = None
    """what stands between two documents in a text file, such as <|endoftext|>; none = a file is one document"""
    field: str | None = None
    """of each line of a .jsonl file, what holds the text of a document, such as text"""

    def __post_init__(self):
        for name, value in (("separator", self.separator), ("field", self.field)):
            if value is None:
                continue
            if not value or value.startswith("-"):  # which as an argument would be an option
                raise ConfigError(f"data.{name} is {value!r:.80}, but must have characters and not begin with -.")
            if value.encode(errors="ignore").decode() != value:
                raise ConfigError(f"data.{name} is {value!r:.80}, which is not valid Unicode.")
        if not self.source:
            raise ConfigError("data.source is empty; name stdlib, pydoc, or at least one file.")
        for name in (*self.source, self.tokenizer):
            if name.startswith("-"):  # as an argument it would be an option
                raise ConfigError(f"data names the file {name!r}, which looks like an option; write ./{name}")
            if name.encode(errors="ignore").decode() != name:
                raise ConfigError(f"data names the file {name!r}, which is not valid Unicode; rename the file.")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction is {self.val_fraction}, but must be between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how often, with what."""

    steps: int | None = None
    """updates; none = as many as fit into `minutes`"""
    minutes: float = 3.0
    """time budget of the training loop, where steps is none; a calibration turns it into steps"""
    eval_every: int = 100
    """steps between looks at the validation text (a fixed sample of it; the whole of it at the end)"""
    checkpoint_every: int = 200
    """steps between checkpoints"""
    keep: int = 2
    """last checkpoints to keep, besides the best and one at least 100 steps old"""
    seed: int = 0
    """of the initial weights, the order of the data and dropout"""
    dtype: Literal["float32", "float64", "bf16"] = "float32"
    """of weights and activations; bf16 = float32, but matrix products of bfloat16, on a CPU that has them"""
    threads: int | None = None
    """threads of the kernels; none = one per core"""

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps is {self.steps}, but must be at least 1.")
        if not self.minutes > 0:
            raise ConfigError(f"train.minutes is {self.minutes}, but must be above 0.")
        for name in ("eval_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, but must be at least 1.")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"train.seed is {self.seed}, but must be at least 0 and below 2^64.")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every kind of training has."""

    lengthened_by: ClassVar[str] = "train.steps"  # the fields that make a run longer
    fits_batch: ClassVar[bool] = False  # whether batch.size may be none, until the run is made
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)

    def __post_init__(self):
        for section, table in asdict(self).items():
            for name, value in table.items():
                if isinstance(value, float) and not isfinite(value):
                    raise ConfigError(f"{section}.{name} is {value}, but must be a finite number.")
                if isinstance(value, int) and name != "seed" and value > LARGEST_COUNT:
                    raise ConfigError(f"{section}.{name} is {value}, but must be at most {LARGEST_COUNT}.")
        if self.batch.size is None and not self.fits_batch:
            raise ConfigError("batch.size is none, which sft, reward and dpo know only; set batch.size.")

    def with_steps(self, steps: int) -> Self:
        """The same run with its number of updates fixed."""
        return replace(self, train=replace(self.train, steps=steps))


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """A complete experiment in pretraining."""

    lengthened_by = "train.steps or train.minutes"
    data: DataConfig = field(default_factory=DataConfig)
    model: Architecture = field(default_factory=Architecture)


def load_recipe(recipe: str) -> RunConfig:
    """The config of a recipe: the name of an embedded one, or a TOML file."""
    return load_config(_find_recipe(recipe), RunConfig)


def _find_recipe(recipe: str) -> Path:
    folder = resources.files("npllm") / "recipes"
    names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    if recipe in names:
        return Path(str(folder / f"{recipe}.toml"))
    if Path(recipe).is_file():
        return Path(recipe)
    raise ConfigError(
        f"{recipe} is neither a TOML file nor a recipe{nearest(recipe, names)}; recipes: {', '.join(names)}."
    )
