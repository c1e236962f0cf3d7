"""The reward model: a language model whose second head, at a response's last token, says how good the response is.

It learns from pairs of which one is preferred; see `losses.bradley_terry`. Dropout is off: with it the two responses of
a pair would be judged by two different networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from npllm.data.fitting import Room
from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Preference, preference, read_preferences, scan
from npllm.data.sampler import RowSampler
from npllm.data.splitting import split_records
from npllm.finetuning.adaptation import adapted
from npllm.finetuning.chosen_records import fitting_records
from npllm.finetuning.stage_run import (
    RecordSettings,
    StageConfig,
    Usual,
    describe_length,
    fix_length,
    micro_batch,
    new_state,
)
from npllm.model import GPT
from npllm.optim import BatchConfig, OptimConfig
from npllm.rlhf.losses import bradley_terry
from npllm.rlhf.sequences import Sequences, join, last_rows, rewards_of, rows_in_part, width_of
from npllm.runs.inputs import Copies, block_size_of, checked_records, load_model, trained_checkpoint
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig
from npllm.training.job import Job
from npllm.training.loop import BatchResult, accumulate
from npllm.training.machine import usable_dtype
from npllm.training.memory import Work
from npllm.training.stage import Stage

CONFIDENCE_BINS = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class RewardSettings(RecordSettings):
    """How the pairs are used: once each, as in Ziegler et al., 2019."""

    section, usual = "reward", Usual(epochs=1.0, batch=32, least_batch=4, least_updates=50)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(StageConfig):
    """A complete training of a reward model. batch.size counts pairs."""

    lengthened_by, fits_batch = "train.steps or reward.epochs", True
    reward: RewardSettings = field(default_factory=RewardSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=3e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=None, micro_size=32))


class Pairs(NamedTuple):
    """Preferred and other responses to the same prompts; their rows are equally wide."""

    chosen: Sequences
    rejected: Sequences

    @property
    def width(self) -> int:
        """Columns of each row."""
        return self.chosen.tokens.shape[1]

    def take(self, rows: np.ndarray | slice) -> "Pairs":
        """Some of the pairs."""
        return Pairs(*(Sequences(*(array[rows] for array in side)) for side in self))

    def together(self) -> Sequences:
        """All of the chosen, then all of the rejected."""
        return Sequences(*(np.concatenate(arrays) for arrays in zip(*self, strict=True)))


def encode_pairs(records: Sequence[Preference], tokenizer: Tokenizer, block_size: int) -> Pairs:
    """Preferences as tokens; each response ends in the stop token."""
    asked = PromptFormat(tokenizer)
    prompts = [asked.encode(record.prompt) for record in records]
    sides = [
        [np.array(asked.encode_response(getattr(record, name)), np.int32) for record in records]
        for name in ("chosen", "rejected")
    ]
    longest = max(len(prompt) + len(response) for side in sides for prompt, response in zip(prompts, side, strict=True))
    width = width_of(longest, block_size)
    return Pairs(*(join(prompts, side, width) for side in sides))


class RewardGradients:
    """The Bradley-Terry loss of pairs; micro-batches add up."""

    def __init__(self, pairs: Pairs, config: LoopConfig):
        self.pairs = pairs
        self.micro_size = config.batch.micro_size
        self.sampler = RowSampler(len(pairs.chosen.tokens), config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        rows = self.sampler.rows(ids)

        def gradient(part: slice) -> tuple[float, Mapping[str, float]]:
            sequences = self.pairs.take(rows[part]).together()
            trace = model.trace(sequences.tokens, step=step, first_row=2 * part.start)
            at = last_rows(sequences.tokens, sequences.last)
            hidden = trace.hidden[at]  # (2P, C)
            chosen, rejected = np.split(model.readout(hidden)[:, 0].astype(np.float64), 2)
            loss, dchosen, drejected = bradley_terry(chosen, rejected, n_pairs=len(rows))
            drewards = np.concatenate([dchosen, drejected])[:, None].astype(model.dtype)
            dhidden = np.zeros_like(trace.hidden)
            dhidden[at] = model.readout_backward(drewards, hidden)
            model.backward(trace, dhidden)
            return loss, {
                "accuracy": float(np.count_nonzero(chosen > rejected)),
                "margin": float((chosen - rejected).sum()),
            }

        loss, sums = accumulate(len(rows), self.micro_size, gradient)
        figures = {name: value / len(rows) for name, value in sums.items()}
        return BatchResult(loss, 2 * len(rows) * self.pairs.chosen.tokens.shape[1], figures)


class RewardEvaluation(NamedTuple):
    """On held-out pairs. by_confidence: for each range of the model's own probability of its choice, how many pairs
    fell into it, and the share of them that was right."""

    loss: float
    accuracy: float
    margin: float
    by_confidence: list[dict[str, float]]


def evaluate_reward(model: GPT, pairs: Pairs) -> RewardEvaluation:
    """How well a reward model ranks pairs."""
    chosen, rejected = rewards_of(model, pairs.chosen), rewards_of(model, pairs.rejected)
    loss, dchosen, _ = bradley_terry(chosen, rejected)
    right = chosen > rejected
    wrong_probability = -dchosen * len(chosen)  # sigma(-z)
    confidence = np.maximum(wrong_probability, 1.0 - wrong_probability)
    bins = []
    for low, high in zip(CONFIDENCE_BINS[:-1], CONFIDENCE_BINS[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            bins.append({"up_to": high, "pairs": int(inside.sum()), "accuracy": float(right[inside].mean())})
    return RewardEvaluation(loss, float(right.mean()), float((chosen - rejected).mean()), bins)


def preferences_of(data: Path, settings: RecordSettings, base: Path, console: Console) -> list[Preference]:
    """Those of a jsonl file that the model of the run `base` can learn from."""
    checkpoint, tokenizer = trained_checkpoint(base)
    room = Room(block_size_of(checkpoint), "model.block_size")
    return fitting_records(scan(data, preference), settings.on_bad, settings.section, tokenizer, room, console)


def reward_inputs(config: RewardConfig, base: Path, preferences: Sequence[Preference]) -> Copies:
    """Check and split the preferences, and fix the number of updates."""
    checkpoint, tokenizer = trained_checkpoint(base)
    encode_pairs(preferences, tokenizer, block_size_of(checkpoint))  # raises where one does not fit
    train_records, val_records = split_records(preferences, config.reward.val_fraction, config.train.seed)
    config = fix_length(config, config.reward, len(train_records))
    return Copies(config, tokenizer, {"policy": checkpoint}, {"train": train_records, "val": val_records})


@dataclass(kw_only=True)
class RewardJob(Job):
    """val_pairs: what the model is judged by."""

    val_pairs: Pairs


class Reward(Stage[RewardConfig]):
    """A reward model, from pairs of which one is preferred."""

    name, config_type = "reward", RewardConfig
    models, records = ("policy",), ("train", "val")

    def inputs(self, config: RewardConfig, console: Console, run: Positional[Path], *, data: Path) -> Copies:
        """The model and the preferences.

        Args:
            run: folder of the run to begin with (npllm sft), or a checkpoint in it
            data: jsonl, or a list in a .json file, with prompt (a text, or messages), chosen and rejected
        """
        return reward_inputs(config, run, preferences_of(data, config.reward, run, console))

    def job(self, run: RunFolder, config: RewardConfig) -> RewardJob:
        """The base model with a second head, and the pairs."""
        base, dtype = load_model(run, "policy"), usable_dtype(config.train.dtype)
        model = adapted(base, config.adapt, n_outputs=1, dropout=0.0, seed=config.train.seed, dtype=dtype)
        tokenizer, T = run.load_tokenizer(), model.config.block_size
        pairs, val_pairs = (
            encode_pairs(read_preferences(checked_records(run, name)), tokenizer, T) for name in ("train", "val")
        )
        rows, width = 2 * micro_batch(config), pairs.width
        return RewardJob(
            state=new_state(model, config),
            gradients=RewardGradients(pairs, config),
            validate=lambda model: evaluate_reward(model, val_pairs).loss,
            work=Work(rows=rows, width=width, read_rows=rows_in_part(width), copies=1),
            description=describe_length(config, len(pairs.chosen.tokens), "pairs"),
            shown=("accuracy", "margin"),
            val_pairs=val_pairs,
        )

    def report(self, run: RunFolder, config: RewardConfig, job: RewardJob, console: Console) -> None:
        """How many of the held-out pairs it ranks rightly."""
        result = evaluate_reward(job.state.model, job.val_pairs)
        write_summary(run, job.state, result._asdict())
        console.print(
            f"ranks {result.accuracy:.1%} of {len(job.val_pairs.chosen.tokens):,} held-out pairs rightly, "
            f"loss {result.loss:.4f}, margin {result.margin:.3f}",
            highlight=False,
        )


STAGE = Reward()
