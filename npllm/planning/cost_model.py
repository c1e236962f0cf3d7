"""The memory of a rank and the seconds of an update on many ranks, by a cost model.

The time of an update is that of the busiest rank:

    compute         its micro-batches, at the rate of a rank
    additions       of its own sums in the tree, and of those that other ranks send
    communication   the messages of `distributed/costs.py` that compute does not hide
    update          of its own piece of the weights; the other pieces are set to zero

The gradient of a block travels between hosts while the backward pass goes on with the
blocks below. What is final only at the end is not hidden: the first block, embeddings
and vectors. Inside a host nothing is hidden, since its cores copy the messages.

Arithmetic is counted by `ModelConfig.flops_per_token`, and what only moves numbers by
its passes over memory. Moments are divided between the ranks, weights and gradients are
not: the first stage of Rajbhandari et al., "ZeRO: memory optimizations toward training
trillion parameter models", 2020.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import NamedTuple

from npllm.distributed import Ranks
from npllm.distributed.costs import Network, bytes_sent, halving_seconds, small_seconds
from npllm.distributed.pieces import pieces
from npllm.distributed.tree import leaves_of
from npllm.model import ModelConfig
from npllm.model.footprint import itemsize_of, parameter_bytes
from npllm.model.parameters import parameter_shapes
from npllm.optim import batch_size, moment_count
from npllm.training.config import RunConfig
from npllm.training.machine import usable_dtype
from npllm.training.memory import Memory, largest_batch, pretraining_memory, spare_buffers

MOST_RANKS = 1 << 16
ADDITION_PASSES = 6  # sum aside (2), zeros (1), sum back (3): see `_subtree` of training/loop.py
UPDATE_PASSES = 5  # norm (1), weights (2), gradient read and set to zero (2); and 2 for each moment
SMALL_MESSAGES = 10  # collective operations of an update on a few bytes: see training/orders.py
BACKWARD = 2 / 3  # of the operations of a micro-batch
LATE_SPANS = 4  # the first block, embeddings, vectors: see `Parameters.spans`
MOST_SAMPLED = 256  # updates of a ramp
HALF = 0.5  # the efficiency below which more ranks do not pay


class Speed(NamedTuple):
    """flops: operations per second of a rank in forward and backward.
    memory_bandwidth: bytes per second at which it adds arrays."""

    flops: float
    memory_bandwidth: float


@dataclass(frozen=True)
class Step:
    """One update on several ranks.

    micro_batches: of the busiest rank. tokens: of the batch. bytes_sent: by a rank. The
    others are seconds.
    """

    ranks: int
    micro_batches: int
    tokens: int
    bytes_sent: float
    compute: float
    additions: float
    communication: float
    update: float

    @property
    def seconds(self) -> float:
        return self.compute + self.additions + self.communication + self.update

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def efficiency(self, alone: "Step") -> float:
        """Return the speed in comparison with `ranks` times the speed of one."""
        return self.tokens_per_s / (self.ranks * alone.tokens_per_s)


@dataclass(frozen=True)
class CostModel:
    """Predicts the updates of one config. vocab_size: of its tokenizer."""

    config: RunConfig
    vocab_size: int
    speed: Speed
    network: Network

    @property
    def model(self) -> ModelConfig:
        return model_of(self.config, self.vocab_size)

    @property
    def rows(self) -> int:
        """The sequences of the largest batch."""
        return largest_batch(self.config)

    @property
    def micro_batches(self) -> int:
        """The micro-batches of the largest batch."""
        return -(-self.rows // self.config.batch.micro_size)

    def step(self, ranks: int, rows: int | None = None) -> Step:
        """Predict an update with a batch of some rows; None = the largest batch."""
        rows, micro_size, T = rows or self.rows, self.config.batch.micro_size, self.config.model.block_size
        # No rank is busier than the first: left halves are the larger ones.
        own = len(leaves_of(0, ranks, -(-rows // micro_size)))
        n_bytes = parameter_bytes(self.model, usable_dtype(self.config.train.dtype))
        in_memory = n_bytes / self.speed.memory_bandwidth  # seconds of one pass over all
        others = (ranks - 1) / ranks
        passes = (UPDATE_PASSES + 2 * moment_count(self.config.optim)) / ranks + others
        return Step(
            ranks=ranks,
            micro_batches=own,
            tokens=rows * T,
            bytes_sent=bytes_sent(n_bytes, ranks),
            compute=min(rows, own * micro_size) * T * self.model.flops_per_token(T) / self.speed.flops,
            additions=ADDITION_PASSES * in_memory * (own - 1 + others),
            communication=self._communication(ranks, n_bytes, min(rows, micro_size) * T),
            update=passes * in_memory,
        )

    def _communication(self, ranks: int, n_bytes: float, tokens: int) -> float:
        """Return the seconds of all messages of an update that compute does not hide.

        tokens: of the last micro-batch, during whose backward blocks travel.
        """
        blocks = (self.model.n_layer - 1) * itemsize_of(self.config.train.dtype) * _block_elements(self.model)
        early = halving_seconds(blocks, ranks, self.network, spans=self.model.n_layer - 1)
        late = halving_seconds(n_bytes - blocks, ranks, self.network, spans=LATE_SPANS)
        backward = BACKWARD * tokens * self.model.flops_per_token(self.config.model.block_size) / self.speed.flops
        collected = halving_seconds(n_bytes, ranks, self.network).total
        return (
            early.inside
            + max(0.0, early.between - backward)
            + late.total
            + collected
            + SMALL_MESSAGES * small_seconds(ranks, self.network)
        )

    def steps(self, ranks: int) -> list[Step]:
        """Predict the largest batch on 1, 2, 4, ..., ranks."""
        return [self.step(each) for each in powers_of_two(ranks)]

    def last_efficient(self) -> Step:
        """Return the step with the most ranks that is at least half as efficient."""
        alone = self.step(1)
        last = alone
        for step in map(self.step, powers_of_two(MOST_RANKS)):
            if step.efficiency(alone) < HALF:
                break
            last = step
        return last

    def ramp_efficiency(self, ranks: int) -> float | None:
        """Return the efficiency over the updates in which the batch grows; None for a
        config without a ramp."""
        batches = ramp(self.config)
        if not batches:
            return None
        alone, together = (sum(self.step(each, rows).seconds for rows in batches) for each in (1, ranks))
        return alone / (ranks * together)


def model_of(config: RunConfig, vocab_size: int) -> ModelConfig:
    """Return the model of a config."""
    return ModelConfig(**asdict(config.model), vocab_size=vocab_size)


def powers_of_two(most: int) -> Iterator[int]:
    """Yield 1, 2, 4, ..., most."""
    ranks = 1
    while ranks <= most:
        yield ranks
        ranks *= 2


def ramp(config: RunConfig) -> list[int]:
    """Return the sequences of the updates before the batch is full; of a long ramp,
    those of updates that are spread evenly."""
    updates = config.batch.ramp_steps if config.batch.ramp_start is not None else 0
    updates = min(updates, config.train.steps or updates)
    every = max(1, updates // MOST_SAMPLED)
    return [batch_size(update, config.batch) for update in range(0, updates, every)]


def _block_elements(model: ModelConfig) -> int:
    """Return the elements of the matrices of a block."""
    shapes = parameter_shapes(replace(model, n_layer=1)).items()
    return sum(prod(shape) for name, shape in shapes if name.startswith("blocks.") and len(shape) == 2)


class _Planned(Ranks):
    """The first of so many ranks, which do not exist."""

    def __init__(self, size: int):
        self.size = size


def memory_of_rank(config: RunConfig, vocab_size: int, ranks: int) -> Memory:
    """Return the memory of rank 0, which brings the moments of all ranks together when
    it saves. `aside` is the part that the other ranks do not have.

    The program is this process. Muon does not cut a matrix; there a rank may have one
    matrix more than its share, and the memory is that of such a rank.
    """
    alone, count = pretraining_memory(config, vocab_size, val_bytes=0), moment_count(config.optim)
    model, dtype = model_of(config, vocab_size), usable_dtype(config.train.dtype)
    params, itemsize = parameter_bytes(model, dtype), itemsize_of(dtype)
    cuts = pieces(params // itemsize, ranks)
    own = itemsize * max(end - start for start, end in zip(cuts, cuts[1:], strict=False))
    if config.optim.name == "muon" and ranks > 1:
        first = parameter_shapes(replace(model, n_layer=1)).items()
        own += itemsize * max(prod(shape) for name, shape in first if name.startswith("blocks."))
    return replace(
        alone,
        gradients=params * (1 + spare_buffers(config, _Planned(ranks))),
        moments=count * min(own, params),
        aside=alone.aside + (count * params if ranks > 1 else 0),
    )


def bytes_per_parameter(config: RunConfig, ranks: int) -> float:
    """Return the bytes that a rank keeps for each parameter.

    They hold the weight, the gradient, sums that wait or arrive, and moments.
    """
    arrays = 2 + spare_buffers(config, _Planned(ranks)) + moment_count(config.optim) / ranks
    dtype = usable_dtype(config.train.dtype)
    return itemsize_of(dtype) * arrays + (2 if dtype == "bf16" else 0)
