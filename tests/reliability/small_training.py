"""The real training driver on a tiny model and random tokens, without a report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from npllm.model import GPT, Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.runs.ledger import Ledger
from npllm.runs.run_folder import RunFolder
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.evaluation import quick_loss
from npllm.training.job import Job
from npllm.training.loop import Gradients, NextTokenGradients, build_state, updates
from npllm.training.memory import Work
from npllm.training.recovery import Validate
from npllm.training.spikes import SpikeConfig
from npllm.training.state import LoopState
from npllm.training.train import train

V = 13
TOKENS = np.random.default_rng(0).integers(0, V, 400).astype(np.uint16)

CONFIG = RunConfig(
    model=Architecture(n_layer=1, n_head=2, n_embd=8, block_size=4, dropout=0.2),
    optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=2),
    batch=BatchConfig(size=6, micro_size=4, ramp_start=2, ramp_steps=8),
    train=TrainConfig(steps=20, checkpoint_every=4, eval_every=4, keep=2),
    spikes=SpikeConfig(window=8, min_history=4, margin=3),
)


def with_spikes(config: RunConfig, **changes) -> RunConfig:
    """The same run with other settings of the detector."""
    return replace(config, spikes=replace(config.spikes, **changes))


def with_training(config: RunConfig, **changes) -> RunConfig:
    """The same run with other settings of the loop."""
    return replace(config, train=replace(config.train, **changes))


class Poison:
    """Gradients of a run in which some samples are bad.

    harm: changes the gradient of a batch that holds a bad sample; returns its loss.
    batches: the sample ids of each batch that was asked for, in order.
    """

    def __init__(self, config: RunConfig, bad: Sequence[int], harm: Callable):
        self.real = NextTokenGradients(config, TOKENS)
        self.bad = set(bad)
        self.harm = harm
        self.batches: list[list[int]] = []

    def __call__(self, model, ids, step):
        self.batches.append(ids.tolist())
        result = self.real(model, ids, step)
        return result._replace(loss=self.harm(model, result.loss)) if self.bad & set(ids.tolist()) else result


def fifty_fold(model, loss):
    """Make a batch count fifty times, in its loss and in its gradient."""
    model.grads.flat[:] *= 50
    return 50 * loss


def make_run(folder: Path) -> RunFolder:
    """A run folder with the least content that the driver needs."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").write_text("")
    return RunFolder(folder)


def train_on(
    run: RunFolder,
    config: RunConfig,
    gradients: Gradients | None = None,
    validate: Validate | None = None,
    sample: Callable[[GPT], tuple[str, str]] | None = None,
) -> LoopState:
    """Train as `npllm pretrain` and `npllm resume` do between preparation and report.

    Returns the state at the end.
    """
    state = build_state(config, V)
    job = Job(
        state=state,
        gradients=gradients or NextTokenGradients(config, TOKENS),
        validate=validate or (lambda model: quick_loss(model, TOKENS[:60])),
        work=Work(rows=4, width=4, read_rows=1),
        tokens_per_byte=1.0,
        sample=sample,
    )
    with run.lock():
        train(run, config, job, Console(quiet=True))
    return state


def clean_state(config: RunConfig, excluded: Sequence[tuple[int, int]] = ()) -> LoopState:
    """The final state of the bare loop, without files and without a detector.

    excluded: ranges of sample ids, [start, end), that the loop leaves out.
    """
    config = with_spikes(config, enabled=False)
    state = build_state(config, V)
    for _ in updates(state, config, NextTokenGradients(config, TOKENS), excluded):
        pass
    return state


def assert_same_bits(one: LoopState, other: LoopState) -> None:
    """Assert that two states have the same bits.

    That includes weights, moments, counters and the detector's window. Only the
    training time and the number of rollbacks may differ.
    """
    for name, array in one.arrays().items():
        assert array.tobytes() == other.arrays()[name].tobytes(), name
    ignored = {"seconds": None, "rollbacks": None}
    assert one.counters() | ignored == other.counters() | ignored


def skipped_ranges(run: RunFolder) -> list[tuple[int, int]]:
    """The ranges of sample ids, [start, end), that the ledger leaves out."""
    return Ledger(run.ledger).skipped


def events(run: RunFolder, *kinds: str) -> list[dict]:
    """The ledger's events of these kinds, or all of them, without their times."""
    found = [{name: value for name, value in event.items() if name != "time"} for event in Ledger(run.ledger).events]
    return [event for event in found if not kinds or event["event"] in kinds]
