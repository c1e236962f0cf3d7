"""Supervised fine-tuning: a language model learns to answer from demonstrations.

The targets are the tokens of each response and the token that ends it. The loss is the
mean negative log-likelihood of all targets of a batch. The tokens of prompts are read,
but are not targets.

Several demonstrations share a row. Attention does not reach from one to another: see
`data/packing.py`.

Source: Ouyang et al., "Training language models to follow instructions with human
feedback", 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from math import exp
from pathlib import Path

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from npllm.data.chat import Example, encode_conversation, encode_demonstration
from npllm.data.docstrings import stdlib_docstrings
from npllm.data.fitting import Room
from npllm.data.packing import PackedRows, pack
from npllm.data.prompt_format import CHAT_TOKENS
from npllm.data.records import Conversation, Demonstration, demonstration, read_demonstrations, scan
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
from npllm.output import shell_word
from npllm.reference.lm_head_loss import IGNORED
from npllm.runs.inputs import Copies, checked_records, load_model, policy_checkpoint
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.tokenizer import Tokenizer
from npllm.tokenizer.special_tokens import with_special_tokens
from npllm.tokenizer.tokenizer import END_OF_TEXT
from npllm.training.config import LoopConfig
from npllm.training.evaluation import rows_at_once
from npllm.training.job import Job
from npllm.training.loop import BatchResult, WhenFinal, accumulate
from npllm.training.machine import usable_dtype
from npllm.training.memory import Work
from npllm.training.stage import Figures, Stage

EMBEDDED = "stdlib-docstrings"


@dataclass(frozen=True, kw_only=True)
class SFTSettings(RecordSettings):
    """How the demonstrations are used."""

    section, usual = "sft", Usual(epochs=3.0, batch=16, least_batch=1, least_updates=200)
    val_fraction: float = 0.05
    """share of the demonstrations that is held out for validation;
    those with the same prompt stay together"""


@dataclass(frozen=True, kw_only=True)
class SFTConfig(StageConfig):
    """The config of `npllm sft`."""

    lengthened_by, fits_batch = "train.steps or sft.epochs", True
    sft: SFTSettings = field(default_factory=SFTSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=5e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=None, micro_size=8))


class PackedGradients:
    """Adds the gradient of a batch of packed rows, one micro-batch after the other.

    Calling it with the sample ids of a batch returns the batch's loss, in nats per
    target.
    """

    def __init__(self, rows: PackedRows, config: LoopConfig):
        self.packed = rows
        self.micro_size = config.batch.micro_size
        self.sampler = RowSampler(len(rows.tokens), config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        tokens, targets, starts = (array[self.sampler.rows(ids)] for array in self.packed)  # each (rows, T)
        n_targets = int(np.count_nonzero(targets != IGNORED))

        def gradient(part: slice, when_final: WhenFinal) -> tuple[float, Mapping[str, float]]:
            rows = {"n_targets": n_targets, "starts": starts[part], "step": step, "first_row": part.start}
            return model.loss_and_grad(tokens[part], targets[part], **rows, when_final=when_final), {}

        loss, _ = accumulate(model.grads, len(ids), self.micro_size, gradient)
        return BatchResult(loss, tokens.size, {"n_targets": n_targets})


def packed_loss(model: GPT, rows: PackedRows) -> float:
    """Return the mean negative log-likelihood of the targets of all rows, in nats."""
    nll = 0.0
    at_once = rows_at_once(rows.tokens.shape[1])
    for first in range(0, len(rows.tokens), at_once):
        tokens, targets, starts = (array[first : first + at_once] for array in rows)
        nll += float(model.negative_log_likelihood(tokens, targets, starts=starts).sum(dtype=np.float64))
    return nll / int(np.count_nonzero(rows.targets != IGNORED))


def demonstrations_of(
    data: str, settings: SFTSettings, base: Path, console: Console
) -> list[Demonstration | Conversation]:
    """Return the demonstrations that fit the model of the run `base`.

    data: a file, or stdlib-docstrings for the embedded demonstrations.

    Raises DataError for bad records of a file, unless sft.on_bad leaves them out.
    """
    _, tokenizer, model_config = policy_checkpoint(base)
    T = model_config.block_size
    if data == EMBEDDED:
        return embedded_demonstrations(tokenizer, T)
    file = scan(data, demonstration)
    tokenizer, room = tokenizer_for(file.records, tokenizer), Room(T + 1, "model.block_size + 1")
    return fitting_records(file, settings.on_bad, settings.section, tokenizer, room, console)


def embedded_demonstrations(tokenizer: Tokenizer, block_size: int) -> list[Demonstration]:
    """Return signatures and docstrings of the standard library that fit the model.

    Those that are too long are left out without a message. In a user's file they would
    be bad records.
    """
    demonstrations = stdlib_docstrings()
    examples = encode(demonstrations, with_special_tokens(tokenizer, [END_OF_TEXT]))
    fits = [len(example.tokens) <= block_size + 1 for example in examples]
    return list(compress(demonstrations, fits))


def sft_inputs(config: SFTConfig, base: Path, demonstrations: Sequence[Demonstration | Conversation]) -> Copies:
    """Check and split the demonstrations, and set train.steps.

    Returns the inputs of the run.
    """
    checkpoint, tokenizer, model_config = policy_checkpoint(base)
    tokenizer, T = tokenizer_for(demonstrations, tokenizer), model_config.block_size
    # Before the split, so that error messages number the examples as the caller does.
    pack(encode(demonstrations, tokenizer), T)
    train_records, val_records = split_records(demonstrations, config.sft.val_fraction, config.train.seed)
    rows = pack(encode(train_records, tokenizer), T)
    config = fix_length(config, config.sft, len(rows.tokens))
    return Copies(config, tokenizer, {"policy": checkpoint}, {"train": train_records, "val": val_records})


def tokenizer_for(records: Sequence[Demonstration | Conversation], tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the special tokens that the records need."""
    chat = any(isinstance(record, Conversation) for record in records)
    return with_special_tokens(tokenizer, [END_OF_TEXT, *(CHAT_TOKENS if chat else [])])


def encode(records: Sequence[Demonstration | Conversation], tokenizer: Tokenizer) -> list[Example]:
    """Return the records as tokens, in which the targets are marked."""
    encoders = {Demonstration: encode_demonstration, Conversation: encode_conversation}
    return [encoders[type(record)](tokenizer, record) for record in records]


class SFT(Stage[SFTConfig]):
    """Supervised fine-tuning: the model learns the responses, given the prompts."""

    name, config_type = "sft", SFTConfig
    models, records = ("policy",), ("train", "val")
    first_options = ("sft.epochs", "sft.on_bad", "adapt.lora_rank", "optim.lr", "batch.size", "train.seed")

    def inputs(self, config: SFTConfig, console: Console, run: Positional[Path], *, data: str = EMBEDDED) -> Copies:
        """Read and check the model and the demonstrations.

        Args:
            run: folder of the run to start from, or a checkpoint in it
            data: jsonl, csv or tsv with prompt and response; or jsonl with instruction,
                input and output, or with messages; or stdlib-docstrings
        """
        return sft_inputs(config, run, demonstrations_of(data, config.sft, run, console))

    def job(self, run: RunFolder, config: SFTConfig) -> Job:
        """The training of the base model, with new special tokens, on packed rows."""
        tokenizer, dtype = run.load_tokenizer(), usable_dtype(config.train.dtype)
        model = adapted(
            load_model(run, "policy"),
            config.adapt,
            vocab_size=tokenizer.vocab_size,
            seed=config.train.seed,
            dtype=dtype,
        )
        T = model.config.block_size
        rows, val_rows = (
            pack(encode(read_demonstrations(checked_records(run, name)), tokenizer), T) for name in ("train", "val")
        )
        length = describe_length(config, len(rows.tokens), f"rows of {T} tokens")
        return Job(
            state=new_state(model, config),
            gradients=PackedGradients(rows, config),
            validate=lambda model: packed_loss(model, val_rows),
            work=Work(rows=micro_batch(config), width=T, read_rows=rows_at_once(T)),
            description=f"{model.params.count / 1e6:.2f} M parameters to train; {length}",
        )

    def held_out_figures(self, run: RunFolder, config: SFTConfig, model: GPT, console: Console) -> Figures:
        """Loss and perplexity of the held-out responses."""
        records = read_demonstrations(checked_records(run, "val"))
        rows = pack(encode(records, run.load_tokenizer()), model.config.block_size)
        loss, n_targets = packed_loss(model, rows), int(np.count_nonzero(rows.targets != IGNORED))
        return [
            ("loss", f"{loss:.4f} nats per token"),
            ("perplexity", f"{exp(min(loss, 700.0)):.3f}"),
            ("text", f"the responses of {len(records):,} held-out demonstrations, {n_targets:,} predicted tokens"),
        ]

    def report(self, run: RunFolder, config: SFTConfig, job: Job, console: Console) -> str:
        """Write and print the loss on the held-out demonstrations."""
        with console.status("evaluating"):
            val_loss = job.validate(job.state.model)
        write_summary(run, job.state, {"val_loss": val_loss})
        console.print(f"loss {val_loss:.4f} nats per token of the held-out responses")
        return f"npllm chat {shell_word(run.path)}"


STAGE = SFT()
