"""`npllm reward`: the reward model, a language model with a scalar head.

The output of the head at the last token of a response is the score of the response. The
model learns from pairs of responses of which one is preferred; `losses.bradley_terry`
has the loss. Dropout is off: with it, two different networks would score the two
responses of a pair.
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
from npllm.output import shell_word, tracked
from npllm.reference.lm_head_loss import IGNORED
from npllm.rlhf.losses import bradley_terry
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.sequences import Sequences, join, last_rows, rewards_of, rows_in_part, width_of
from npllm.runs.inputs import (
    Copies,
    block_size_of,
    checked_records,
    load_model,
    model_file,
    record_file,
    trained_checkpoint,
)
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig
from npllm.training.job import Job
from npllm.training.loop import BatchResult, accumulate
from npllm.training.machine import usable_dtype
from npllm.training.memory import Work
from npllm.training.stage import Figures, Stage

CONFIDENCE_BINS = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges, of probabilities


@dataclass(frozen=True, kw_only=True)
class RewardSettings(RecordSettings):
    """How the pairs are used.

    By default each pair is used once, as in Ziegler et al., 2019, and more often if
    that makes too few updates.
    """

    section, usual = "reward", Usual(epochs=1.0, batch=32, least_batch=4, least_updates=50)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(StageConfig):
    """All settings of the training of a reward model. batch.size counts pairs."""

    lengthened_by, fits_batch = "train.steps or reward.epochs", True
    reward: RewardSettings = field(default_factory=RewardSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=3e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=None, micro_size=32))


class Pairs(NamedTuple):
    """P preferred and P rejected responses to the same prompts.

    All rows have the same width W.
    """

    chosen: Sequences
    rejected: Sequences

    @property
    def width(self) -> int:
        """W, the number of columns of each row."""
        return self.chosen.tokens.shape[1]

    def take(self, rows: np.ndarray | slice) -> "Pairs":
        """Return the pairs with these numbers."""
        return Pairs(*(Sequences(*(array[rows] for array in side)) for side in self))

    def together(self) -> Sequences:
        """Return 2P sequences: all chosen ones, then all rejected ones."""
        return Sequences(*(np.concatenate(arrays) for arrays in zip(*self, strict=True)))


def encode_pairs(records: Sequence[Preference], tokenizer: Tokenizer, block_size: int) -> Pairs:
    """Return preferences as tokens. Each response ends with the stop token.

    Raises DataError if one does not fit into block_size tokens.
    """
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
    """Computes the Bradley-Terry loss of a batch of pairs and its gradient.

    The batch is split into micro-batches, whose losses and gradients add up.
    """

    def __init__(self, pairs: Pairs, config: LoopConfig):
        self.pairs = pairs
        self.micro_size = config.batch.micro_size
        self.sampler = RowSampler(len(pairs.chosen.tokens), config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        rows = self.sampler.rows(ids)

        def gradient(part: slice, _) -> tuple[float, Mapping[str, float]]:
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

        loss, sums = accumulate(model.grads, len(rows), self.micro_size, gradient)
        figures = {name: value / len(rows) for name, value in sums.items()}
        return BatchResult(loss, 2 * len(rows) * self.pairs.chosen.tokens.shape[1], figures)


class RewardEvaluation(NamedTuple):
    """The figures of a reward model on held-out pairs.

    loss: mean, in nats. accuracy: share of the pairs that are ranked rightly. margin:
    mean score of the chosen response minus that of the rejected one. by_confidence:
    the accuracy by how sure the model is of its choice, which is the probability
    sigma(|difference of the scores|). Each entry is a range of CONFIDENCE_BINS with its
    upper edge (up_to), the number of pairs in it, and the accuracy on them.
    """

    loss: float
    accuracy: float
    margin: float
    by_confidence: list[dict[str, float]]


def evaluate_reward(model: GPT, pairs: Pairs, console: Console | None = None) -> RewardEvaluation:
    """Return how well a reward model ranks the pairs.

    console: shows how much is done; None = nothing is shown.
    """
    rows = rows_in_part(pairs.width)
    parts = [pairs.take(slice(first, first + rows)) for first in range(0, len(pairs.chosen.tokens), rows)]
    rewards = [[rewards_of(model, side) for side in part] for part in tracked(parts, len(parts), "evaluating", console)]
    chosen, rejected = (np.concatenate(side) for side in zip(*rewards, strict=True))
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
    """Return the preferences of a file that fit into the context of a model.

    base: the run of the model. settings.on_bad says what happens to preferences that
    are invalid or too long. Raises DataError if it is "stop" and there are any.
    """
    checkpoint, tokenizer = trained_checkpoint(base)
    room = Room(block_size_of(checkpoint), "model.block_size")
    return fitting_records(scan(data, preference), settings.on_bad, settings.section, tokenizer, room, console)


def reward_inputs(config: RewardConfig, base: Path, preferences: Sequence[Preference]) -> Copies:
    """Return what the run copies: the config, the model, and the split preferences.

    The config gets the number of updates. Raises DataError if a preference does not fit
    into the model's context.
    """
    checkpoint, tokenizer = trained_checkpoint(base)
    encode_pairs(preferences, tokenizer, block_size_of(checkpoint))  # raises if one does not fit
    train_records, val_records = split_records(preferences, config.reward.val_fraction, config.train.seed)
    config = fix_length(config, config.reward, len(train_records))
    return Copies(config, tokenizer, {"policy": checkpoint}, {"train": train_records, "val": val_records})


@dataclass(kw_only=True)
class RewardJob(Job):
    """The training job of a reward model. val_pairs: the held-out pairs."""

    val_pairs: Pairs


class Reward(Stage[RewardConfig]):
    """The stage of `npllm reward`."""

    name, config_type = "reward", RewardConfig
    models, records = ("policy",), ("train", "val")
    first_options = ("reward.epochs", "reward.on_bad", "adapt.lora_rank", "optim.lr", "batch.size", "train.seed")

    def inputs(self, config: RewardConfig, console: Console, run: Positional[Path], *, data: Path) -> Copies:
        """Return the model and the preferences.

        Args:
            run: folder of the run to start from (npllm sft), or a checkpoint in it
            data: jsonl, csv or tsv with prompt (in jsonl perhaps messages),
                chosen and rejected
        """
        return reward_inputs(config, run, preferences_of(data, config.reward, run, console))

    def job(self, run: RunFolder, config: RewardConfig) -> RewardJob:
        """Return the training job: the model with a scalar head, and the pairs."""
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

    def held_out_figures(self, run: RunFolder, config: RewardConfig, model: GPT, console: Console) -> Figures:
        """Loss, accuracy and margin on the held-out pairs."""
        pairs = encode_pairs(
            read_preferences(checked_records(run, "val")), run.load_tokenizer(), model.config.block_size
        )
        result = evaluate_reward(model, pairs, console)
        return [
            ("loss", f"{result.loss:.4f} nats per pair"),
            ("accuracy", f"{result.accuracy:.1%} of the pairs are ranked rightly"),
            ("margin", f"{result.margin:.3f}"),
            ("text", f"{len(pairs.chosen.tokens):,} held-out pairs"),
        ]

    def report(self, run: RunFolder, config: RewardConfig, job: RewardJob, console: Console) -> str:
        """Write and print the figures on the held-out pairs."""
        result = evaluate_reward(job.state.model, job.val_pairs, console)
        write_summary(run, job.state, result._asdict())
        console.print(
            f"ranks {result.accuracy:.1%} of {len(job.val_pairs.chosen.tokens):,} held-out pairs rightly, "
            f"loss {result.loss:.4f}, margin {result.margin:.3f}"
        )
        return ppo_command(run, job.gradients.pairs, job.state.model.config.block_size)


def ppo_command(run: RunFolder, pairs: Pairs, block_size: int) -> str:
    """Return the command that trains the run's policy with its reward model.

    The prompts are those of the training pairs. ppo.max_tokens is lowered where the
    longest prompt leaves less room for a response.
    """
    policy, prompts = (shell_word(file) for file in (model_file(run, "policy"), record_file(run, "train")))
    command = f"npllm ppo {policy} --reward {shell_word(run.path)} --prompts {prompts}"
    longest = int((pairs.chosen.targets != IGNORED).argmax(axis=1).max()) + 1
    room = block_size - longest
    return command if room >= PPOSettings.max_tokens else f"{command} --ppo.max_tokens {room}"


STAGE = Reward()
