"""Pretraining: raw text in, a language model out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from npllm.data.shards import TokenShard, read_shard
from npllm.errors import DataError
from npllm.runs.arguments import given_values
from npllm.runs.run_folder import RunFolder
from npllm.runs.verify import Check
from npllm.training.compile_ahead import compiling_ahead
from npllm.training.config import RunConfig, load_recipe
from npllm.training.evaluation import quick_loss
from npllm.training.job import Job
from npllm.training.loop import NextTokenGradients, build_state
from npllm.training.machine import limit_threads, usable_dtype
from npllm.training.memory import pretraining_work, require_pretraining_memory
from npllm.training.prepare import prepare_data
from npllm.training.results import report_results
from npllm.training.stage import Stage
from npllm.training.warmup import kind_of


@dataclass(frozen=True)
class RawText:
    """The inputs of pretraining: the text that the config names."""

    config: RunConfig

    def write(self, draft: RunFolder, console: Console) -> RunConfig:
        """Write tokenizer and token shards."""
        config = self.config
        limit_threads(config.train.threads)
        kind = kind_of(config.model, usable_dtype(config.train.dtype), config.optim)
        with console.status("preparing") as status:
            with compiling_ahead([kind], console):
                corpus = prepare_data(config.data, draft, status.update)
                status.update("compiling kernels (kept for the next run)")
            remarks = [*corpus.remarks, held_out_line(*draft.load_shards(), corpus.held_out)]
        for line in remarks:
            console.print(line, soft_wrap=True)
        return config


def run_time(config: RunConfig) -> str:
    """How long a run trains, in steps or in minutes."""
    if config.train.steps is None:
        return f"{config.train.minutes:g} minutes of steps"
    return f"{config.train.steps:,} steps"


def held_out_line(train: TokenShard, val: TokenShard, held_out: str) -> str:
    """How the text was split."""
    val_share = val.n_bytes / (train.n_bytes + val.n_bytes)
    return (
        f"trains on {train.n_bytes / 1e6:.2f} MB = {len(train.tokens) / 1e6:.2f} M tokens, "
        f"validates on {val.n_bytes / 1e6:.2f} MB ({100 * val_share:.1f} %): {held_out}"
    )


class Pretraining(Stage[RunConfig]):
    """Next-token prediction from random weights."""

    name, config_type = "pretrain", RunConfig
    first_options = (
        "data.source",
        "model.n_layer",
        "model.n_embd",
        "model.block_size",
        "optim.lr",
        "batch.size",
        "train.steps",
        "train.seed",
    )

    def default_config(self, arguments: list[str]) -> RunConfig:
        """The config of the recipe that the arguments name."""
        return load_recipe(given_values(arguments).get("recipe") or "default")

    def folder_name(self, config: RunConfig, *, recipe: str, **_) -> str:
        """The name of the recipe."""
        return Path(recipe).stem

    def inputs(
        self, config: RunConfig, console: Console, *, recipe: str = "default", minutes: float | None = None
    ) -> RawText:
        """The text to learn.

        Args:
            recipe: an embedded recipe (default, shakespeare-char) or a TOML file
            minutes: time budget of the loop, in place of train.steps and train.minutes
        """
        if minutes is not None:
            config = replace(config, train=replace(config.train, minutes=minutes, steps=None))
        return RawText(config)

    def job(self, run: RunFolder, config: RunConfig) -> Job:
        """A model with its initial weights, and windows of the training tokens."""
        train, val = run.load_shards()
        require_pretraining_memory(config, train.vocab_size, val.n_bytes)  # before there are weights
        state = build_state(config, train.vocab_size)
        return Job(
            state=state,
            gradients=NextTokenGradients(config, train.tokens),
            validate=lambda model: quick_loss(model, val.tokens),
            work=pretraining_work(config, train.vocab_size, val.n_bytes),
            description=(
                f"{state.model.params.count / 1e6:.2f} M parameters, vocabulary {train.vocab_size:,}; "
                f"{run_time(config)} of up to {config.batch.size} × {config.model.block_size} tokens"
            ),
            tokens_per_byte=len(train.tokens) / train.n_bytes,
        )

    def report(self, run: RunFolder, config: RunConfig, job: Job, console: Console) -> str:
        """Report the loss on the whole validation text, samples and a plot."""
        return report_results(run, job.state, read_shard(run.val_shard), console)

    def input_checks(self, run: RunFolder) -> Mapping[Path, Check]:
        """The two token shards, which pretraining has in place of models and
        records."""
        return {path: lambda path: _check_shard(run, path) for path in (run.train_shard, run.val_shard)}


def _check_shard(run: RunFolder, path: Path) -> None:
    if read_shard(path).tokenizer_sha256 != run.load_tokenizer().sha256():
        raise DataError(f"{path} was not made with {run.tokenizer}; put back the file that belongs to the run.")


STAGE = Pretraining()
