"""Everything that decides a run: dataclasses, filled from a TOML file and from the command line.

A recipe is a TOML file whose tables are the sections below and whose keys are their fields. Its values are parsed,
typed and checked by the same code as command-line arguments, and then are the defaults of the user's own.
"""

import contextlib
import difflib
import inspect
import io
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import resources
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import tyro

from npllm.bounded_read import read_bounded
from npllm.errors import ConfigError, DataError
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.training.spikes import SpikeConfig

T = TypeVar("T")
C = TypeVar("C", bound="LoopConfig")

LARGEST_COUNT = 1 << 31  # of steps, samples, tokens: far from where sums of them leave 64 bits
LARGEST_CONFIG = 1 << 20  # bytes
LONGEST_MESSAGE = 500  # characters; a value that is wrong stands in it, and may be as long as the file
# The time of tomllib grows with the square of the number of parts in a dotted key: 60 kB of one take 20 seconds.
MOST_DOTS = 20  # in a line, outside of strings and comments
_NO_KEYS = re.compile(
    r'"{3}(?:\\?.)*?(?:"{3,5}|\Z)'  # strings over several lines, with and without escapes
    r"|'{3}.*?(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*"?'  # strings in a line
    r"|'[^'\n]*'?"
    r"|#[^\n]*",  # comments
    re.DOTALL,
)


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


def parse_arguments(kind: Callable[..., T], arguments: list[str], *, prog: str) -> T:
    """Call a dataclass or a typed function with what the arguments say; what is wrong with them is a ConfigError."""
    options = _options(kind)
    _check_option_names(options, arguments, prog)
    arguments = _with_values(options, arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind, args=arguments, prog=prog, use_underscores=True, config=(tyro.conf.FlagConversionOff,)
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(_first_sentence(complaint.getvalue())) from None


def _with_values(options: dict[str, Any], arguments: list[str]) -> list[str]:
    """The arguments with True after each option that is true or false and stands alone."""
    completed = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        completed.append(argument)
        is_flag = argument.startswith("--") and options.get(argument[2:].replace("-", "_")) is bool
        if is_flag and (following is None or following.startswith("--")):
            completed.append("True")
    return completed


def _check_option_names(options: dict[str, Any], arguments: list[str], prog: str) -> None:
    known = [f"--{name}" for name in options] + ["--help"]
    for argument in arguments:
        option = argument.split("=")[0]
        if option.startswith("--") and f"--{option[2:].replace('-', '_')}" not in known:
            raise ConfigError(f"{option} is not an option of {prog}{nearest(option, known)}.")


def load_config(path: Path, kind: type[C] = RunConfig) -> C:
    """The config in a TOML file. Its [run] table, a record of the machine and the stage, is left out."""
    tables = _read_toml(path)
    tables.pop("run", None)
    try:
        return parse_arguments(kind, _arguments(tables, kind), prog=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error):.{LONGEST_MESSAGE}}") from error


def stage_of(path: Path) -> str:
    """The verb that made the run whose config.toml this is."""
    record = _read_toml(path).get("run")
    return str(record.get("stage", "pretrain")) if isinstance(record, dict) else "pretrain"


def last_step_of(path: Path) -> int | None:
    """With how many updates the run ends whose config.toml this is, of any stage; None where it does not say."""
    settings = _read_toml(path).get("train")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    return steps if isinstance(steps, int) else None


def _read_toml(path: Path) -> dict[str, Any]:
    content = read_bounded(path, LARGEST_CONFIG)
    try:
        text = content.decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in _NO_KEYS.sub("", text).splitlines()):
            raise ValueError("it has a key of too many parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error


def load_recipe(recipe: str) -> RunConfig:
    """The config of a recipe: the name of an embedded one, or a TOML file."""
    return load_config(_find_recipe(recipe))


def _arguments(tables: dict[str, Any], kind: type) -> list[str]:
    """The fields of a TOML file as command-line arguments."""
    known = list(_options(kind))
    arguments = []
    for section, table in tables.items():
        for name, value in (table if isinstance(table, dict) else {"": table}).items():
            option = f"{section}.{name}" if name else section
            if option not in known:
                raise ConfigError(f"{repr(option)[1:-1]:.80} is not a field{nearest(option, known)}.")
            arguments.append(f"--{option}")
            arguments += [_argument(option, part) for part in (value if isinstance(value, list) else [value])]
    return arguments


def _argument(option: str, value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # thousands of hexadecimal digits
        raise ConfigError(f"{option} is a number of too many digits.") from None
    if isinstance(value, str) and value.startswith("-"):  # as an argument it would be an option
        raise ConfigError(f"{option} is {value!r:.80}, which looks like an option; write ./ before the name of a file.")
    return text


def config_text(config: LoopConfig, record: dict[str, str]) -> str:
    """A run as TOML that `load_config` reads. record: facts about this run for people, in the table [run]."""
    lines = []
    for section, table in {**asdict(config), "run": record}.items():
        # TOML has no null: a field that is none is left out, and is none again because that is its default.
        lines += [f"[{section}]", *(f"{k} = {_toml(v)}" for k, v in table.items() if v is not None), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """JSON is TOML but for two things: TOML has no surrogate pairs, and wants the control character DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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


def _options(kind: Callable) -> dict[str, Any]:
    """The parameters of a function or dataclass and, with dots, those of the dataclasses among them: name -> type."""
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if is_dataclass(parameter.annotation):
            options |= {f"{name}.{inner}": kind for inner, kind in _options(parameter.annotation).items()}
        else:
            options[name] = parameter.annotation
    return options


def nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}" if matches else ""


def _first_sentence(box: str) -> str:
    """The message in tyro's framed complaint, in one line."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if line.startswith("─"):
            break
        message.append(line)
    # Of an optional number tyro goes on to say why it is neither a number nor none.
    return " ".join(" ".join(message).split()).split(" Got errors:")[0]
