"""A run as an object, for programs and notebooks."""

from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from npllm.data.records import PromptText
from npllm.generation import generate
from npllm.model import GPT
from npllm.report.plots import RunHistory, loss_figure
from npllm.runs.config_file import load_config
from npllm.runs.ledger import Ledger
from npllm.runs.listing import listed
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import load, open_run
from npllm.runs.summary import read_summary
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig
from npllm.training.stages import stage_in

if TYPE_CHECKING:  # an optional dependency
    from matplotlib.figure import Figure


class Run:
    """A run on the disk: what it was trained with, how it went, and its model.

    path: the run's folder, pathlib.Path. Whatever takes the folder of a run takes the
    object as well, such as `npllm.sft(run)`.

    The object reads a file when it is asked for what is in it, so a run that is still
    being trained can be opened. Only model and tokenizer are kept once they are read.
    Raises DataError where `path` holds no run, and where a file is missing or damaged.
    """

    def __init__(self, path: str | PathLike):
        self._folder = open_run(path)
        self.path = self._folder.path

    def __fspath__(self) -> str:
        return fspath(self.path)

    def __repr__(self) -> str:
        row = listed(self.path, self._folder)
        size = f"{row.size} parameters" if row.size else ""
        steps = f"{self.summary['steps']:,} steps" if row.stage and self._folder.summary.exists() else ""
        words = ", ".join(word for word in (row.stage, size, steps, row.result) if word)
        return f"Run({str(self.path)!r}: {words})"

    @property
    def config(self) -> LoopConfig:
        """The config: a dataclass with one for each section, as in config.optim.lr."""
        return load_config(self._folder.config, stage_in(self._folder.config).config_type)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """What was measured, by column: arrays with a value for each update, (steps,).

        The columns are "step", "tokens", "loss" (nats per token for a language model),
        "grad_norm", "lr", "seconds", "val_loss" and others. Whole numbers are int64,
        the others float64. A column that an update has no value for, such as "val_loss"
        between evaluations, holds NaN there. Each can be plotted, and pandas.DataFrame
        takes all. The lines themselves are in `path / "metrics.jsonl"`.
        """
        records = read_metrics(self._folder.metrics)
        columns = dict.fromkeys(name for record in records for name in record)
        return {name: np.array([record.get(name, np.nan) for record in records]) for name in columns}

    @property
    def summary(self) -> dict[str, Any]:
        """The final figures of a finished run, as in summary.json: val_loss in nats per
        token, val_bits_per_byte, steps, tokens, seconds ..."""
        return read_summary(self._folder)

    @cached_property
    def _loaded(self) -> tuple[GPT, Tokenizer]:
        return load(self.path)

    @property
    def model(self) -> GPT:
        """The model of the newest checkpoint."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._loaded[1]

    def sample(self, prompt: PromptText = "", **options: Any) -> str:
        """Return a text that the model writes after the prompt, without the prompt.

        prompt: a text or, for a chat model, a question or the messages of a
        conversation. options: those of `npllm.generate`, such as max_tokens=256,
        temperature=0.8, seed=0. Raises ConfigError for a model that judges texts.
        """
        return "".join(generate(self.model, self.tokenizer, prompt, **options))

    def plot(self) -> "Figure":
        """Return the loss of training and validation against tokens, with all spikes.

        A notebook shows the figure. `figure.savefig("loss.pdf")` writes it. Raises
        ModuleNotFoundError without Matplotlib (pip install 'npllm[plot]').
        """
        return loss_figure(RunHistory(read_metrics(self._folder.metrics), Ledger(self._folder.ledger).events))
