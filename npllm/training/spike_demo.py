"""The spike demo: training on partly broken data, with and without recovery.

Some consecutive batches are poisoned: a part of their bytes is shuffled. The share
grows from batch to batch, so the first of them look nearly sound and are learnt from
before the detector can see them. Three trainings start from the same weights, on the
same data:

    roll back and skip    as in every run: back to a checkpoint, then on without the
                          poisoned samples
    only skip updates     as in OLMo-core: no update is made from a spiking batch, its
                          loss enters the detector's window, and nothing is undone
    no detection          every batch is learnt from

The poisoned batches are consecutive in the order of training, not in the text: the
sampler spreads the text over the whole epoch, so a poisoned page would only add a
little noise to many batches.

(OLMo-core, optim/skip_step_optimizer.py.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from npllm.data.sampler import WindowSampler
from npllm.data.shards import TokenShard, write_shard
from npllm.model import GPT, Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.output import shell_word
from npllm.report.plots import DemoCurve, draw_if_possible, plot_spike_demo
from npllm.runs.ledger import Ledger, Spike
from npllm.runs.run_folder import RunFolder
from npllm.training.config import DataConfig, RunConfig, TrainConfig
from npllm.training.evaluation import evaluate
from npllm.training.loop import BatchResult, Gradients, build_state, updates
from npllm.training.pretrain import STAGE as PRETRAINING
from npllm.training.pretrain import RawText
from npllm.training.stage import create_run, prepare_memory
from npllm.training.state import LoopState
from npllm.training.train import train

AVERAGED = 20  # batches in a mean of the loss


@dataclass(frozen=True)
class Poison:
    """The poisoned batches, counted in the order of training.

    growth: number of batches over which the share of shuffled bytes grows to 1.
    """

    first: int = 510  # the loss falls slowly by then, so the detector's limit is narrow
    batches: int = 16
    growth: int = 8

    @property
    def end(self) -> int:
        return self.first + self.batches

    def sample_ids(self, batch_size: int) -> tuple[int, int]:
        """The poisoned sample ids, [first, end), in a run without ramp or skipped
        data."""
        return self.first * batch_size, self.end * batch_size


POISON = Poison()
CONFIG = RunConfig(  # the default recipe, but smaller and with more frequent checkpoints
    data=DataConfig(source=("stdlib",), tokenizer="byte"),
    model=Architecture(
        n_layer=2, n_head=4, n_embd=64, block_size=128, norm="rmsnorm", position="rotary", mlp="swiglu", bias=False
    ),
    optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=100),
    batch=BatchConfig(size=8, micro_size=8),
    train=TrainConfig(steps=800, eval_every=20, checkpoint_every=20),
)


class Batch(NamedTuple):
    """A batch whose loss and gradient were computed.

    step: updates made before it. poisoned: number of its samples that are poisoned.
    """

    step: int
    loss: float
    poisoned: int


@dataclass
class Recorder:
    """Gradients that record every batch, also those that no update is made from."""

    gradients: Gradients
    poisoned_ids: tuple[int, int]
    batches: list[Batch] = field(default_factory=list)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        result = self.gradients(model, ids, step)
        first, end = self.poisoned_ids
        self.batches.append(Batch(step, result.loss, int(np.count_nonzero((ids >= first) & (ids < end)))))
        return result


@dataclass(frozen=True)
class Training:
    """The record of one of the trainings. batches: in the order of computation."""

    name: str
    batches: list[Batch]
    val_loss: float

    @property
    def made(self) -> dict[int, Batch]:
        """step -> the batch that the final weights learnt from. A step that was refused
        or undone was computed again; the last batch counts."""
        return {batch.step: batch for batch in self.batches}

    @property
    def since_poison(self) -> list[Batch]:
        """The batches from the first poisoned one on."""
        return self.batches[self._n_before :]

    @property
    def batches_until_back(self) -> int | None:
        """How many batches after the first poisoned one the loss on clean batches is
        back at its earlier level; None = never."""
        level = mean(batch.loss for batch in self.batches[: self._n_before][-AVERAGED:])
        clean = [(i, batch.loss) for i, batch in enumerate(self.since_poison) if not batch.poisoned]
        for first in range(len(clean) - AVERAGED + 1):
            if mean(loss for _, loss in clean[first : first + AVERAGED]) <= level:
                return clean[first][0]
        return None

    @property
    def _n_before(self) -> int:
        return next(i for i, batch in enumerate(self.batches) if batch.step >= POISON.first)


def run_demo(path: Path, seed: int, console: Console) -> None:
    """Make the three trainings and report them. `path` becomes the run folder of the
    first one, with spike.png in it."""
    config = replace(CONFIG, train=replace(CONFIG.train, seed=seed))
    run = create_run(PRETRAINING, PoisonedText(config), path, console)
    first, end = POISON.sample_ids(config.batch.size)
    samples = f"(samples {first:,} to {end - 1:,})"
    console.print(f"Batches {POISON.first} to {POISON.end - 1} {samples} have their bytes shuffled.", soft_wrap=True)
    with run.lock():
        trainings = train_three_times(run, config, console)
        report_demo(run, trainings, config.model.block_size, console)


def report_demo(run: RunFolder, trainings: list[Training], T: int, console: Console) -> None:
    """Print what happened and a table, and plot the losses. T: block_size."""
    say = partial(console.print, soft_wrap=True)
    ledger, picture = Ledger(run.ledger), run.path / "spike.png"
    console.print()
    say(f"{run.ledger}:")
    for line in in_plain_words(ledger):
        say(line)
    console.print(comparison(trainings, T))
    poisoned = POISON.first, POISON.end
    say(draw_if_possible("plot", picture, lambda: plot_spike_demo(curves(trainings, ledger), poisoned, picture)))
    say(f"Next: npllm generate {shell_word(run.path)}")


@dataclass(frozen=True)
class PoisonedText(RawText):
    """The text of the config, with some of its tokens shuffled."""

    def write(self, draft: RunFolder, console: Console) -> RunConfig:
        """As `RawText.write`."""
        config = super().write(draft, console)
        poison_run(draft, config)
        return config


def poison_run(run: RunFolder, config: RunConfig) -> None:
    """Replace the training tokens of a run by poisoned ones."""
    clean, _ = run.load_shards()
    tokens = poison(clean, config)
    write_shard(
        run.train_shard,
        [document[:-1] for document in np.split(tokens, clean.document_starts[1:])],  # write_shard marks their ends
        vocab_size=clean.vocab_size,
        eot_id=clean.eot_id,
        n_bytes=clean.n_bytes,
        tokenizer_sha256=clean.tokenizer_sha256,
        source_sha256=clean.source_sha256,
    )


def poison(shard: TokenShard, config: RunConfig) -> np.ndarray:
    """A copy of the shard's tokens, (n_tokens,), in which tokens of the poisoned
    batches are shuffled, each window in itself.

    The end-of-text tokens keep their places, and so do the first and last token of a
    window: these belong to the neighbouring windows too, which are clean.
    """
    tokens, T = shard.tokens.copy(), config.model.block_size
    rng = np.random.default_rng(config.train.seed)
    ids = np.arange(*POISON.sample_ids(config.batch.size))
    starts = WindowSampler(len(tokens), T, config.train.seed).positions(ids)
    for start, batch in zip(starts, (ids - ids[0]) // config.batch.size, strict=True):
        share = min(1.0, (batch + 1) / POISON.growth)
        places = start + 1 + rng.permutation(T - 1)[: round(share * (T - 1))]
        places = places[tokens[places] != shard.eot_id]
        tokens[places] = rng.permutation(tokens[places])
    return tokens


def train_three_times(run: RunFolder, config: RunConfig, console: Console) -> list[Training]:
    """The three trainings, from the same weights on the same data. The first one uses
    the run folder."""
    train_shard, val_shard = run.load_shards()
    job = PRETRAINING.job(run, config)
    prepare_memory(run, config, job, console)

    def training(name: str, work: Callable[[LoopState, Recorder], None]) -> Training:
        state = build_state(config, train_shard.vocab_size)
        recorder = Recorder(job.gradients, POISON.sample_ids(config.batch.size))
        work(state, recorder)
        return Training(name, recorder.batches, evaluate(state.model, val_shard.tokens, val_shard.n_bytes).loss)

    def in_the_run_folder(state: LoopState, recorder: Recorder) -> None:
        train(run, config, replace(job, state=state, gradients=recorder), console)

    def only_skipping(state: LoopState, recorder: Recorder) -> None:
        with console.status("once more, only skipping updates"):
            skip_updates(state, config, recorder)

    def without_detection(state: LoopState, recorder: Recorder) -> None:
        blind = replace(config, spikes=replace(config.spikes, enabled=False))
        with console.status("once more, without detection"):
            for _ in updates(state, blind, recorder):
                pass

    return [
        training("roll back and skip", in_the_run_folder),
        training("only skip updates", only_skipping),
        training("no detection", without_detection),
    ]


def skip_updates(state: LoopState, config: RunConfig, gradients: Gradients) -> None:
    """Train to the last step. No update is made from a spiking batch, and its loss
    enters the detector's window; nothing is restored."""
    for event in updates(state, config, gradients):
        if isinstance(event, Spike):
            state.model.grads.flat[:] = 0
            state.next_sample = event.samples[1]
            state.detector.accept(event.loss, event.grad_norm)


def in_plain_words(ledger: Ledger) -> list[str]:
    """What happened in the first training, one sentence per rollback."""
    lines = []
    for event in ledger.rollbacks:
        start, end = event["skipped"]
        lines.append(
            f"Update {event['step']} was not made: {event['reason']}. The run went back to the checkpoint of step "
            f"{event['restored_step']} and left out the samples {start:,} to {end - 1:,}."
        )
    return lines or ["The detector saw no spike."]


def comparison(trainings: list[Training], T: int) -> Table:
    """A row for each training."""
    table = Table("", "validation loss", "worst loss", "batches until it is back", "poisoned tokens learnt")
    table.columns[0].no_wrap = True
    for training in trainings:
        back = training.batches_until_back
        worst = max(batch.loss for batch in training.since_poison)
        poisoned = sum(batch.poisoned for batch in training.made.values()) * T
        table.add_row(
            training.name,
            f"{training.val_loss:.4f}",
            f"{worst:.2f}",
            "not in this run" if back is None else f"{back}",
            f"{poisoned:,}",
        )
    return table


def curves(trainings: list[Training], ledger: Ledger) -> list[DemoCurve]:
    """The curves of the trainings for the plot. Only the first one has rollbacks."""
    drawn = []
    for training, rollbacks in zip(trainings, (ledger.rollbacks, [], []), strict=True):
        made = training.made
        lost = [(batch.step, batch.loss) for batch in training.batches if batch is not made[batch.step]]
        drawn.append(DemoCurve(training.name, [(step, made[step].loss) for step in sorted(made)], lost, rollbacks))
    return drawn
