"""The memory that a training takes: computed from shapes, announced, and checked.

The figure that is announced is the most that the process will have resident at one
time, from its start to its end: what getrusage calls ru_maxrss. Its parts are those of
`Memory`. `program` is measured, once the kernels are loaded or compiled (compiling
leaves about 25 MB behind, which are in it); all else follows from the shapes, see
`model/footprint.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npllm.distributed import ALONE, Ranks, world
from npllm.distributed.tree import leaves_of, most_waiting
from npllm.errors import ResourceError
from npllm.memory.arena import Arena
from npllm.model import GPT, ModelConfig, Trainable
from npllm.model.footprint import (
    Pass,
    evaluation_pass,
    fixed_bytes,
    itemsize_of,
    parameter_bytes,
    product_scratch_bytes,
    training_pass,
    weight_bytes,
)
from npllm.optim import Muon, OptimConfig, Optimizer, batch_size, moment_count
from npllm.training.available import ROOT, memory_left, peak_memory, resident_memory
from npllm.training.config import LoopConfig, RunConfig
from npllm.training.evaluation import rows_at_once
from npllm.training.machine import usable_dtype
from npllm.training.state import LoopState
from npllm.training.warmup import kind_of, load_kernels

PLOT = 36 << 20  # bytes: matplotlib and a picture
GENERATION = 24 << 20  # bytes: compiling the kernels of generation, for the samples of pretraining
COMPRESSION = 12  # bytes for each of the text that xz packs


@dataclass(frozen=True)
class Memory:
    """The bytes of a training at its peak.

    program: the interpreter, libraries, compiled kernels, and the data in memory.
    weights: parameters, frozen and merged weights, their bfloat16 copies, and the
    weights of other models. gradients: with the sums of micro-batches that wait.
    moments: the optimiser's, and whatever else a checkpoint holds. passes: activations,
    and all other arrays that live for one step. aside: the largest of the arrays that
    live at other times: the image of a checkpoint, the report at the end.
    """

    program: int
    weights: int
    gradients: int
    moments: int
    passes: int
    aside: int

    @property
    def total(self) -> int:
        return sum(astuple(self))

    @property
    def announced(self) -> int:
        """The figure that is printed: the total, or the peak so far if that is higher,
        as after reading a long text."""
        return max(self.total, peak_memory())


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes of the passes of a training. A row is a sequence of up to `width`
    tokens.

    rows: rows of a micro-batch. read_rows: rows of a pass without a backward. policy:
    whether log-probabilities are computed instead of the loss. copies: number of NumPy
    arrays of the size of a micro-batch's hidden rows. temporaries: bytes that are taken
    outside of the arenas at other times. written: number of responses generated at
    once, and the length of their longest prompt. update: bytes of the scratch arena
    that the optimiser takes. spares: as in `spare_buffers`. aside: the stage's own part
    of `Memory.aside`, in bytes.
    """

    rows: int
    width: int
    read_rows: int
    policy: bool = False
    copies: int = 0
    temporaries: int = 0
    written: tuple[int, int] = (0, 0)
    update: int = 0
    spares: int = 0
    aside: int = 0


class Reader(NamedTuple):
    """A model that is used but not trained."""

    config: ModelConfig
    dtype: str


def check_memory(memory: Memory, root: Path = ROOT) -> None:
    """Raise ResourceError if a training needs more memory than there is."""
    left = memory_left(root)
    # Ranks share their machine. What the process has is part of what it needs.
    room = left.n_bytes // world().on_this_host + resident_memory(root)
    if memory.total > room:
        raise ResourceError(
            f"Training needs {_size(memory.total)} of memory, but {_size(room)} are there ({left.source}); lower "
            "batch.micro_size (and ppo.rollout_size, of npllm ppo), or take a model with less of model.n_embd, "
            "model.n_layer or model.block_size."
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def require_pretraining_memory(config: RunConfig, vocab_size: int, val_bytes: int) -> None:
    """Raise ResourceError if there is less memory than pretraining takes. Called when
    the process has loaded its text. val_bytes: length of the validation text."""
    load_kernels(kind_of(config.model, usable_dtype(config.train.dtype), config.optim))
    check_memory(pretraining_memory(config, vocab_size, val_bytes))


def pretraining_memory(config: RunConfig, vocab_size: int, val_bytes: int) -> Memory:
    """The memory of pretraining. Called when the kernels are loaded."""
    model, dtype = ModelConfig(**asdict(config.model), vocab_size=vocab_size), usable_dtype(config.train.dtype)
    params = parameter_bytes(model, dtype)
    moments = moment_count(config.optim) * params
    work = pretraining_work(config, vocab_size, val_bytes)
    return Memory(
        program=resident_memory(),
        weights=params + fixed_bytes(model, dtype),
        gradients=params * (1 + work.spares),
        moments=moments,
        passes=bytes_of_passes([model], [], dtype, work),
        aside=max(params + moments, work.aside),
    )


def pretraining_work(config: RunConfig, vocab_size: int, val_bytes: int) -> Work:
    """The passes of pretraining: micro-batches of the largest batch in the ramp,
    validation, and the report at the end."""
    T = config.model.block_size
    model, dtype = ModelConfig(**asdict(config.model), vocab_size=vocab_size), usable_dtype(config.train.dtype)
    return Work(
        rows=min(largest_batch(config), config.batch.micro_size),
        width=T,
        read_rows=rows_at_once(T),
        spares=spare_buffers(config, world()),
        temporaries=GENERATION + cache_bytes(model, 1, T, dtype),  # a sample at each evaluation
        aside=max(PLOT if find_spec("matplotlib") else 0, COMPRESSION * val_bytes),  # the report
    )


def largest_batch(config: LoopConfig) -> int:
    """The number of sequences in the largest batch of a run, which may end before its
    batch is fully grown."""
    steps = config.train.steps
    return config.batch.size if steps is None else batch_size(steps - 1, config.batch)


def spare_buffers(config: LoopConfig, ranks: Ranks = ALONE) -> int:
    """The number of buffers, as long as the gradient, in which sums of micro-batches
    wait, and what other ranks send arrives."""
    n_micro_batches = -(-largest_batch(config) // config.batch.micro_size)
    own = most_waiting(len(leaves_of(0, ranks.size, n_micro_batches)))
    return max(own, 1) if ranks.size > 1 else own


def short_training_bytes(config: ModelConfig, dtype: str, optim: OptimConfig, work: Work) -> int:
    """The bytes that a training without checkpoints takes in addition to the rest of
    the process."""
    arrays = (2 + work.spares + moment_count(optim)) * parameter_bytes(config, dtype)
    below_lora = 3 * weight_bytes(config, dtype) if config.lora_rank else 0  # frozen, merged, and their gradients
    return arrays + below_lora + fixed_bytes(config, dtype) + bytes_of_passes([config], [], dtype, work)


def update_scratch_bytes(optimizer: Optimizer) -> int:
    """The bytes that an update takes from the scratch arena. Only Muon takes any."""
    if not (isinstance(optimizer, Muon) and optimizer.weights):
        return 0
    from npllm.kernels.muon import scratch_shapes  # the kernels are imported when a model first needs them

    arena = Arena()
    for shape in (*scratch_shapes(optimizer.weights), (1, 0)):
        arena.empty(shape, optimizer.model.dtype)
    return arena.peak


def stage_memory(state: LoopState, readers: Sequence[GPT], work: Work) -> Memory:
    """The memory of a stage. Called when its models are built and its kernels are
    loaded, before the first step.

    readers: models that are used but not trained. They may share weights with those
    that are trained, and with each other.
    """
    model = state.model
    trained = list(model.parts().values())
    weights = {id(flat): flat.nbytes for each in (model, *readers) for flat in weights_of(each)}
    gradients = {id(flat): flat.nbytes for flat in gradients_of(model)}
    filled = {id(flat): flat.nbytes for each in (model, *readers) for flat in (each.params.flat, *frozen_of(each))}
    read_before = sum(each.arena.peak + each.scratch.peak for each in readers)
    saved = state.arrays()
    brought = state.saved_bytes - sum(array.nbytes for array in saved.values())  # moments of other ranks
    image = state.saved_bytes + (len(state.optimizer.state_names) * model.params.flat.nbytes if brought else 0)
    fixed = sum(fixed_bytes(each.config, each.dtype_name) for each in (*trained, *readers))
    moments = {id(flat): flat.nbytes for flat in saved.values()}
    return Memory(
        program=resident_memory() - sum(filled.values()) - read_before,
        weights=sum(weights.values()) + fixed,
        gradients=sum(gradients.values()) + work.spares * model.grads.flat.nbytes,
        moments=sum(n_bytes for flat, n_bytes in moments.items() if flat not in weights),
        passes=bytes_of_passes(
            [each.config for each in trained],
            [Reader(each.config, each.dtype_name) for each in readers],
            model.dtype_name,
            work,
        ),
        aside=max(image, work.aside),
    )


def frozen_of(model: Trainable) -> list[np.ndarray]:
    """The flat buffer of the frozen weights below LoRA; an empty list without LoRA."""
    return [] if model.frozen is None else [model.frozen.flat]


def weights_of(model: Trainable) -> list[np.ndarray]:
    """The flat weight buffers that the passes of all parts read."""
    merged = [part.weights.flat for part in model.parts().values() if part.frozen is not None]
    return [model.params.flat, *frozen_of(model), *merged]


def gradients_of(model: Trainable) -> list[np.ndarray]:
    """The flat gradient buffers that the backward passes of all parts add to."""
    merged = [part.dweights.flat for part in model.parts().values() if part.frozen is not None]
    return [model.grads.flat, *merged]


def bytes_of_passes(trained: Sequence[ModelConfig], readers: Sequence[Reader], dtype: str, work: Work) -> int:
    """The bytes of everything that lives for one step. The first of the trained
    networks is the one that generates text."""
    passes = [pass_of(config, dtype, work, writes=config is trained[0]) for config in trained]
    passes += [evaluation_pass(config, work.read_rows, work.width, of, policy=work.policy) for config, of in readers]
    policy, (responses, prompt) = trained[0], work.written
    rows = max(work.rows * work.width, work.read_rows * work.width, responses * prompt)
    hidden = work.rows * work.width * policy.n_embd * itemsize_of(dtype)
    return (
        sum(map(sum, passes))
        + product_scratch_bytes(policy, rows, dtype)
        + max(work.copies * hidden, work.temporaries)
        + cache_bytes(policy, responses, work.width, dtype) * 5 // 4  # a quarter: see KVCache.keep
    )


def pass_of(config: ModelConfig, dtype: str, work: Work, *, writes: bool = True) -> Pass:
    """The bytes at the peak of all passes of a trained model. writes: whether it is
    the first network of the model, which generates text and lends its scratch to the
    optimiser."""
    kinds = [
        training_pass(config, work.rows, work.width, dtype, policy=work.policy),
        evaluation_pass(config, work.read_rows, work.width, dtype, policy=work.policy),
    ]
    if writes:
        kinds.append(Pass(arena=0, scratch=work.update))
    if writes and work.written[0]:
        kinds.append(evaluation_pass(config, *work.written, dtype, policy=work.policy))
    return Pass(*map(max, zip(*kinds, strict=True)))


def cache_bytes(config: ModelConfig, responses: int, length: int, dtype: str) -> int:
    """The bytes of the keys and values of `responses` sequences of `length` tokens."""
    return 2 * config.n_layer * responses * config.kv_heads * length * config.head_width * itemsize_of(dtype)


def reserve_arenas(model: GPT, work: Work, *, writes: bool = True) -> None:
    """Let each arena of a model reserve its peak in one piece. Called before the first
    pass; without it the arenas would take more than their peak."""
    arena, scratch = pass_of(model.config, model.dtype_name, work, writes=writes)
    model.arena.reserve(arena)
    model.scratch.reserve(scratch)
