"""Pretraining: raw text in, a language model out.

A run may start from the weights of another one (`--from`). It then has a copy of them,
models/start.h5, and the tokenizer of that run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rich.console import Console

from npllm.data.shards import Extent, read_extent, read_shard
from npllm.errors import ConfigError, DataError
from npllm.files.user_path import user_path
from npllm.model import GPT, Architecture
from npllm.runs.arguments import From, given_values
from npllm.runs.checkpoint import load_checkpoint
from npllm.runs.inputs import copy_models, load_model, model_file, policy_checkpoint
from npllm.runs.run_folder import RunFolder, run_of
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
from npllm.training.samples import sampler
from npllm.training.stage import Stage
from npllm.training.warmup import kind_of

START = "start"  # name of the copy of the model that a run starts from


@dataclass(frozen=True)
class RawText:
    """The inputs of pretraining: the text that the config names, and perhaps a
    checkpoint to start from."""

    config: RunConfig
    start: Path | None = None

    def write(self, draft: RunFolder, console: Console) -> RunConfig:
        """Write tokenizer and token shards, and copy the checkpoint."""
        config = self.config
        if self.start:
            copy_models(draft, {START: self.start})
        limit_threads(config.train.threads)
        kind = kind_of(config.model, usable_dtype(config.train.dtype), config.optim)
        with console.status("preparing") as status:
            with compiling_ahead([kind], console):
                corpus = prepare_data(config.data, draft, status.update)
                status.update("compiling kernels (kept for the next run)")
            extents = read_extent(draft.train_shard), read_extent(draft.val_shard)
            remarks = [*corpus.remarks, held_out_line(*extents, corpus.held_out)]
        for line in remarks:
            console.print(line, soft_wrap=True)
        return config


def going_on(config: RunConfig, path: Path) -> RunConfig:
    """Return the config with the architecture and the tokenizer of a run, from whose
    weights another one starts.

    path: a run of a language model, or a checkpoint in it.
    """
    _, _, model = policy_checkpoint(path)
    architecture = Architecture(**{field.name: getattr(model, field.name) for field in fields(Architecture)})
    data = replace(config.data, tokenizer=str(run_of(path).tokenizer))
    return replace(config, model=architecture, data=data)


def check_goes_on(config: RunConfig, path: Path) -> None:
    """Raise ConfigError if a config has another architecture or tokenizer than the run
    whose weights it starts from. The dropout may differ."""
    fixed = going_on(config, path)
    for name, value in vars(fixed.model).items():
        given = getattr(config.model, name)
        if name != "dropout" and given != value:
            raise ConfigError(f"model.{name} is {given}, but {path} was trained with {value}; leave it out.")
    if user_path(config.data.tokenizer) != Path(fixed.data.tokenizer):
        raise ConfigError(
            f"data.tokenizer is {config.data.tokenizer!r:.80}, but a run from {path} must have its tokenizer; leave it "
            "out."
        )


def set_weights(model: GPT, start: GPT) -> None:
    """Copy the weights of a model, with LoRA's factors merged in, into one of the same
    architecture."""
    source = start.merged()
    for name, weight in model.params.items():
        weight[...] = source[name]


def run_time(config: RunConfig) -> str:
    """How long a run trains, in steps or in minutes."""
    if config.train.steps is None:
        return f"{config.train.minutes:g} minutes of steps"
    return f"{config.train.steps:,} steps"


def held_out_line(train: Extent, val: Extent, held_out: str) -> str:
    """How the text was split."""
    val_share = val.n_bytes / (train.n_bytes + val.n_bytes)
    return (
        f"trains on {train.n_bytes / 1e6:.2f} MB = {train.n_tokens / 1e6:.2f} M tokens, "
        f"validates on {val.n_bytes / 1e6:.2f} MB ({100 * val_share:.1f} %): {held_out}"
    )


class Pretraining(Stage[RunConfig]):
    """Next-token prediction, from random weights or from those of another run."""

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
        """The config of the recipe that the arguments name. With --from, the model is
        the one of that run."""
        given = given_values(arguments)
        config = load_recipe(given.get("recipe") or "default")
        return going_on(config, Path(given["from"])) if given.get("from") else config

    def folder_name(self, config: RunConfig, *, recipe: str, **_) -> str:
        """The name of the recipe."""
        return Path(recipe).stem

    def inputs(
        self,
        config: RunConfig,
        console: Console,
        *,
        recipe: str = "default",
        minutes: float | None = None,
        start: From[Path | None] = None,
    ) -> RawText:
        """The text to learn.

        Args:
            recipe: default, half-hour, classic, shakespeare-char, or a TOML file
            minutes: time budget of the loop, in place of train.steps and train.minutes
            from: run, or checkpoint in it, with the weights to start from, and with the
                tokenizer; none = random weights
        """
        if start is not None:
            check_goes_on(config, start)
        if minutes is not None:
            config = replace(config, train=replace(config.train, minutes=minutes, steps=None))
        return RawText(config, policy_checkpoint(start)[0] if start else None)

    def job(self, run: RunFolder, config: RunConfig) -> Job:
        """A model with its initial weights, and windows of the training tokens."""
        train, val = run.load_shards()
        require_pretraining_memory(config, train.vocab_size, val.n_bytes)  # before there are weights
        state = build_state(config, train.vocab_size)
        if goes_on := (run.path / "models").exists():
            set_weights(state.model, load_model(run, START))
        return Job(
            state=state,
            gradients=NextTokenGradients(config, train.tokens),
            validate=lambda model: quick_loss(model, val.tokens),
            work=pretraining_work(config, train.vocab_size, val.n_bytes),
            description=(
                f"{state.model.params.count / 1e6:.2f} M parameters, vocabulary {train.vocab_size:,}; "
                f"{run_time(config)} of up to {config.batch.size} × {config.model.block_size} tokens"
                f"{', from trained weights' if goes_on else ''}"
            ),
            tokens_per_byte=len(train.tokens) / train.n_bytes,
            sample=sampler(run.load_tokenizer(), val, config.model.block_size, config.train.seed),
        )

    def report(self, run: RunFolder, config: RunConfig, job: Job, console: Console) -> str:
        """Report the loss on the whole validation text, samples and a plot."""
        return report_results(run, job.state, read_shard(run.val_shard), console)

    def input_checks(self, run: RunFolder) -> Mapping[Path, Check]:
        """The two token shards, which pretraining has in place of records, and the
        model that it started from."""
        start = {model_file(run, START): load_checkpoint} if (run.path / "models").exists() else {}
        return start | {path: lambda path: _check_shard(run, path) for path in (run.train_shard, run.val_shard)}


def _check_shard(run: RunFolder, path: Path) -> None:
    if read_shard(path).tokenizer_sha256 != run.load_tokenizer().sha256():
        raise DataError(f"{path} was not made with {run.tokenizer}; put back the file that belongs to the run.")


STAGE = Pretraining()
