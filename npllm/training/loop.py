"""The training loop: batch, forward and backward, spike check, clip, update."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from npllm.data.sampler import WindowSampler, batch, next_ids
from npllm.distributed import team
from npllm.distributed.reduction import Reduction
from npllm.distributed.tree import finished_by, fold, leaves_of
from npllm.model import GPT, Model, ModelConfig, Parameters
from npllm.model.parameters import nobody
from npllm.optim import batch_size, build_optimizer, learning_rate, warmup_updates
from npllm.runs.ledger import Spike
from npllm.training.config import LoopConfig, RunConfig
from npllm.training.length import Phase, RunLength
from npllm.training.machine import usable_dtype
from npllm.training.orders import ComputeGradient, MakeUpdate, broken_moment
from npllm.training.spikes import SpikeDetector
from npllm.training.state import LoopState


class BatchResult(NamedTuple):
    """The loss of a batch, computed together with its gradients.

    loss: of the weights before the update; for a language model in nats per token.
    tokens: number of tokens in the batch. figures: other values to write into
    metrics.jsonl.
    """

    loss: float
    tokens: int
    figures: Mapping[str, float] = MappingProxyType({})


# gradients(model, ids, step) adds the gradients of a batch to those of the model. ids:
# absolute sample ids, (rows,). step: the update's number, which keys the dropout masks.
# For one type of model: Gradients[GPT].
Gradients = Callable[[Model, np.ndarray, int], BatchResult]


@dataclass(frozen=True)
class Update:
    """The record of one update. loss: as in BatchResult. grad_norm: before clipping."""

    step: int  # updates made, this one included
    loss: float
    grad_norm: float
    lr: float
    batch: int  # sequences
    tokens: int  # trained on so far
    seconds: float  # that this update took
    batch_tokens: int
    figures: Mapping[str, float]


Part = tuple[float, Mapping[str, float]]  # the loss and the figures of some rows of a batch
WhenFinal = Callable[[str], None]  # called with the name of a span of a gradient that is complete
# Adds the gradient of some rows to that of the model, and returns their part of the
# loss and the figures. It may call the other argument while it still works.
MicroBatch = Callable[[slice, WhenFinal], Part]


def accumulate(grads: Parameters, n_rows: int, micro_size: int, gradient: MicroBatch) -> tuple[float, dict[str, float]]:
    """Compute the gradient of a batch of n_rows in micro-batches of micro_size rows.

    The micro-batches are the leaves of a tree (distributed/tree.py), over which their
    gradients, losses and figures are added. Several ranks divide them, and each then
    has the sum in its own piece of grads.

    grads: of the model, zero. gradient: of a micro-batch. A span that it says to be
    final in the last one is sent to the other ranks at once, the rest at the end.
    Returns the loss and the figures of the batch.
    """
    ranks, firsts = team(), range(0, n_rows, micro_size)
    leaves = [leaves_of(rank, ranks.size, len(firsts)) for rank in range(ranks.size)]
    own = [slice(firsts[leaf], min(firsts[leaf] + micro_size, n_rows)) for leaf in leaves[ranks.rank]]
    received = grads.spare(0) if ranks.size > 1 else None
    present = [len(each) > 0 for each in leaves]
    reduction = Reduction(ranks, grads.flat, received, grads.cuts, present, grads.spans())
    part = _subtree(grads, own, gradient, reduction) if own else None
    reduction.finish()
    loss, figures = fold(ranks.gather(part), _sum)
    return loss, dict(figures)


def _subtree(grads: Parameters, slices: Sequence[slice], gradient: MicroBatch, reduction: Reduction) -> Part:
    """Add the gradients of micro-batches over their tree, and start their reduction.
    Returns the sum of their parts. The sums of complete subtrees wait in the spare
    buffers of grads."""
    *before, last = slices
    waiting: list[Part] = []
    for leaf, rows in enumerate(before):
        part = gradient(rows, nobody)
        for _ in range(finished_by(leaf, len(slices))):
            part = _sum(waiting.pop(), part)
            grads.flat += grads.spare(len(waiting))
        grads.spare(len(waiting))[:] = grads.flat
        grads.flat[:] = 0.0
        waiting.append(part)

    def complete(name: str) -> None:  # the last leaf completes all nodes
        span = reduction.spans[name]
        for number in reversed(range(len(waiting))):
            grads.flat[span] += grads.spare(number)[span]
        reduction.start(name)

    part = gradient(last, complete)
    for name in list(reduction.left):
        complete(name)
    for each in reversed(waiting):
        part = _sum(each, part)
    return part


def _sum(one: Part, other: Part) -> Part:
    """The sum of the losses, and of each figure."""
    (loss, figures), (more, others) = one, other
    return loss + more, {name: value + others[name] for name, value in figures.items()}


def build_state(config: RunConfig, vocab_size: int) -> LoopState:
    """The initial state of a pretraining run. Check before that the memory is enough
    (`memory.py`)."""
    model_config = ModelConfig(**asdict(config.model), vocab_size=vocab_size)
    model = GPT(model_config, seed=config.train.seed, dtype=usable_dtype(config.train.dtype))
    return LoopState(model, build_optimizer(model, config.optim), SpikeDetector(config.spikes))


class NextTokenGradients:
    """The gradients of pretraining: next-token prediction in windows of `tokens`,
    (n_tokens,)."""

    def __init__(self, config: RunConfig, tokens: np.ndarray):
        self.tokens = tokens
        self.micro_size = config.batch.micro_size
        self.sampler = WindowSampler(len(tokens), config.model.block_size, config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        T = self.sampler.block_size

        def gradient(rows: slice, when_final: WhenFinal) -> tuple[float, Mapping[str, float]]:
            x, y = batch(self.tokens, self.sampler.positions(ids[rows]), T)  # (rows of the micro-batch, T)
            place = {"n_targets": len(ids) * T, "step": step, "first_row": rows.start}
            return model.loss_and_grad(x, y, **place, when_final=when_final), {}

        loss, _ = accumulate(model.grads, len(ids), self.micro_size, gradient)
        return BatchResult(loss, len(ids) * T)


def updates(
    state: LoopState,
    config: LoopConfig,
    gradients: Gradients,
    skipped: Sequence[tuple[int, int]] = (),
    length: RunLength | None = None,
) -> Iterator[Update | Spike]:
    """Make the remaining updates of a run. Yields the record of each.

    Between two updates the state is complete: if it is saved there and restored later,
    the run continues with the same bits. A spike is yielded in place of an update that
    is not made; the optimiser has then changed nothing. The caller sets the state to
    one that training can continue from, and the loop continues from there. skipped:
    ranges of sample ids to leave out, [start, end); they are read again for each batch.
    length: None = config.train.steps.
    """
    length = length or RunLength(config)
    while not length.is_over(state.step):
        event = make_update(state, config, gradients, length.phase(state.step), skipped)
        length.decide(state.step, state.seconds)
        yield event


def make_update(
    state: LoopState,
    config: LoopConfig,
    gradients: Gradients,
    phase: Phase,
    skipped: Sequence[tuple[int, int]] = (),
) -> Update | Spike:
    """Make one update, which belongs to a phase. Returns its record, or a Spike if it
    must not be made."""
    start = time.perf_counter()
    step = state.step
    rows = batch_size(step, config.batch)
    n_updates = None if phase.end is None else phase.end - phase.first
    lr = learning_rate(step - phase.first, n_updates, config.optim)
    state.detector.warmup_steps = phase.first + warmup_updates(n_updates, config.optim)
    ids = next_ids(state.next_sample, rows, skipped)
    end = int(ids[-1]) + 1

    team().share(ComputeGradient(ids, step, config.spikes.enabled))
    with team().common_work():
        loss, tokens, figures = gradients(state.model, ids, step)
        grad_norm = state.optimizer.gradient_norm()
        broken = broken_moment(state) if config.spikes.enabled else None
    if config.spikes.enabled and (reason := _reason(state, loss, grad_norm, broken)):
        return Spike(step + 1, loss, grad_norm, state.tokens, (int(ids[0]), end), reason)
    if isfinite(grad_norm):  # if not, the optimiser refuses
        team().share(MakeUpdate(lr, config.optim.grad_clip, grad_norm))
    state.optimizer.step(grad_clip=config.optim.grad_clip, lr=lr, norm=grad_norm)

    state.detector.accept(loss, grad_norm)
    state.next_sample = end
    state.tokens += tokens
    seconds = time.perf_counter() - start
    state.seconds += seconds
    return Update(state.step, loss, grad_norm, lr, rows, state.tokens, seconds, tokens, figures)


def _reason(state: LoopState, loss: float, grad_norm: float, broken: str | None) -> str | None:
    """Why an update must not be made (None = it may): the detector's reason, or a
    moment of the optimiser that is not finite, which is `broken`."""
    if reason := state.detector.reason(state.step, loss, grad_norm):
        return reason
    return f"{broken} holds values that are not finite" if broken else None
