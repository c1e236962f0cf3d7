"""Optimisers: one pass over the model's flat buffers.

The pass also clips the gradients and sets them to zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from npllm.distributed import ALONE, Ranks
from npllm.distributed.pieces import piece_of, pieces
from npllm.errors import TrainingError
from npllm.memory.aligned import aligned_zeros
from npllm.model import Parameters, Trainable
from npllm.model.parameters import name_in_model, parameter_shapes
from npllm.optim.config import OptimConfig
from npllm.optim.shared_norm import shared_norm, squares_of
from npllm.reference.muon import LinearWeight


class ParameterGroup(NamedTuple):
    """A slice of the flat buffers whose elements are updated alike."""

    where: slice
    lr_scale: float  # 0 = frozen
    decays: bool
    weight: LinearWeight | None = None  # for Muon: the group is this one parameter


class Optimizer(ABC):
    """What all update rules share.

    That is clipping, weight decay on matrices only, and named state arrays as long as
    the flat parameters.
    """

    state_names: tuple[str, ...] = ()

    def __init__(
        self, model: Trainable, *, lr: float, weight_decay: float, lr_scales: Mapping[str, float] = MappingProxyType({})
    ):
        """lr_scales: factors of the learning rate of parameters, by name.

        A parameter without one has 1; a parameter with 0 is frozen.
        """
        self.model = model
        self.lr = lr
        self.weight_decay = weight_decay
        self.updates = 0  # how many were made
        self._groups = parameter_groups(model.params, lr_scales, self._whole_weights(lr_scales))
        self.shard(ALONE)

    def shard(self, ranks: Ranks) -> None:
        """Divide the moments, which are zero, between ranks: `state` has this rank's
        piece of each. Of a gradient a rank needs its own piece only: a step updates
        this piece of the parameters and collects those of the others. No element is
        computed in another way than by one rank.

        (Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
        parameter models", 2020: its first stage.)
        """
        flat, piece = self.model.params.flat, piece_of(ranks.rank, ranks.size)
        whole = [group.where for group in self._groups if group.weight is not None]
        self._ranks, self._cuts = ranks, [outside(cut, whole) for cut in pieces(len(flat), ranks.size)]
        self._own, self.model.grads.cuts = slice(self._cuts[piece], self._cuts[piece + 1]), self._cuts
        self.state = {name: _zeros_like(flat[self._own]) for name in self.state_names}

    @contextmanager
    def whole_state(self, *, changes: bool = False) -> Iterator[None]:
        """In the block `state` has the whole moments on rank 0. Every rank enters it.

        changes: whether rank 0 changes them; they are then divided again.
        """
        own, whole, ranks = self.state, self.state, self._ranks
        if ranks.size > 1:
            empty = lambda: _zeros_like(self.model.params.flat) if ranks.rank == 0 else None  # noqa: E731
            whole = {name: empty() for name in self.state_names}
            for name in self.state_names:
                ranks.bring(whole[name], own[name], self._cuts)
            if ranks.rank == 0:
                self.state = whole
        yield
        if changes:
            for name in self.state_names:
                ranks.hand_out(whole[name], own[name], self._cuts)
        self.state = own

    def _whole_weights(self, lr_scales: Mapping[str, float]) -> dict[str, LinearWeight]:
        """Return the weights that the rule takes as wholes, by name: none."""
        return {}

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of `model.grads`; every rank calls this.

        The gradients of frozen parameters are set to zero first.
        """
        for where, lr_scale, *_ in self._groups:
            if lr_scale == 0.0:
                self.model.grads.flat[where] = 0.0
        flat, ops = self.model.grads.flat, self.model.ops
        if self._ranks.size == 1:
            return ops.gradient_norm(flat)
        parts = self._ranks.gather(squares_of(flat, self._own, ops.sums_of_squares))
        return shared_norm(parts, ops.sums_of_squares)

    def step(self, *, grad_clip: float = 0.0, lr: float | None = None, norm: float | None = None) -> float:
        """Update the parameters from `model.grads`, and set these to zero.

        grad_clip: a gradient with a larger norm is scaled down to this norm; 0 = never.
        lr: replaces the optimiser's own for this update. norm: the result of
        `gradient_norm`, if it was computed before.

        Returns the norm of the gradient before clipping. Raises TrainingError if the
        gradient is not finite, and leaves everything as it was.
        """
        norm = self.gradient_norm() if norm is None else norm
        if not isfinite(norm):
            raise TrainingError(
                f"The gradient of update {self.updates + 1} is not finite ({norm}); lower optim.lr or lengthen "
                f"optim.warmup_steps."
            )
        scale = grad_clip / norm if 0.0 < grad_clip < norm else 1.0
        self.updates += 1
        trained = [group for group in self._groups if group.lr_scale != 0.0]
        self._update_groups(trained, self.lr if lr is None else lr, scale)
        self.model.grads.flat[: self._own.start] = 0.0
        self.model.grads.flat[self._own.stop :] = 0.0
        self._ranks.collect(self.model.params.flat, self._cuts)
        return norm

    def _update_groups(self, groups: list[ParameterGroup], lr: float, grad_scale: float) -> None:
        own = self._own
        for group in groups:
            first, end = max(group.where.start, own.start), min(group.where.stop, own.stop)
            if first >= end:
                continue
            self._update(
                *(flat[first:end] for flat in (self.model.params.flat, self.model.grads.flat)),
                *(moments[first - own.start : end - own.start] for moments in self.state.values()),
                lr=group.lr_scale * lr,
                weight_decay=self.weight_decay if group.decays else 0.0,
                grad_scale=grad_scale,
            )

    @abstractmethod
    def _update(self, params, grads, *state, lr: float, weight_decay: float, grad_scale: float) -> None:
        """Apply the rule to one slice of the buffers, and set its gradients to zero."""


class Adam(Optimizer):
    """Adam; the gradient includes weight decay. See `npllm/reference/adam.py`."""

    state_names = ("adam_m", "adam_v")
    decoupled = False

    def __init__(self, model: Trainable, *, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, **options):
        super().__init__(model, lr=lr, weight_decay=weight_decay, **options)
        self.betas = betas
        self.eps = eps

    def _update(self, params, grads, *state, **step):
        self.model.ops.adam_update(
            params,
            grads,
            *state,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            decoupled=self.decoupled,
            step=self.updates,
            **step,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay. See `npllm/reference/adam.py`."""

    decoupled = True

    def __init__(self, model: Trainable, *, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **options):
        super().__init__(model, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


class Muon(AdamW):
    """Muon for the matrices of the blocks, AdamW for all other parameters.

    adam_m holds the momentum of these matrices, and adam_v stays zero there. Embeddings
    and heads are tables of vectors, and LoRA's factors are not the matrices that act:
    they are AdamW's. See `npllm/reference/muon.py`.
    """

    def __init__(self, model: Trainable, *, lr=3e-3, matrix_lr=2e-2, momentum=0.95, **options):
        """lr: of AdamW's part. matrix_lr: of Muon's; a schedule scales both alike."""
        super().__init__(model, lr=lr, **options)
        self.matrix_scale = matrix_lr / lr if lr else 0.0
        self.momentum = momentum

    def _whole_weights(self, lr_scales):
        return linear_weights(self.model, lr_scales)

    @property
    def weights(self) -> list[LinearWeight]:
        """The weights that are trained by Muon's rule on this rank. Their places count
        from the start of its piece."""
        own = self._own
        trained = [group for group in self._groups if group.weight is not None and group.lr_scale != 0.0]
        mine = [group.weight for group in trained if own.start <= group.where.start < own.stop]
        return [weight._replace(start=weight.start - own.start) for weight in mine]

    def _update_groups(self, groups, lr, grad_scale):
        super()._update_groups([group for group in groups if group.weight is None], lr, grad_scale)
        if not (weights := self.weights):
            return
        arrays = self.model.params.flat[self._own], self.model.grads.flat[self._own], self.state["adam_m"]
        rates = {"lr": lr * self.matrix_scale, "momentum": self.momentum, "weight_decay": self.weight_decay}
        # Between two passes the memory of a pass is free.
        scratch = next(iter(self.model.parts().values())).scratch
        with scratch.scope():
            self.model.ops.muon_update(*arrays, weights, **rates, grad_scale=grad_scale, empty=scratch.empty)


class SGD(Optimizer):
    """Gradient descent with momentum. See `npllm/reference/sgd.py`."""

    state_names = ("velocity",)

    def __init__(self, model: Trainable, *, lr=1e-1, momentum=0.9, weight_decay=0.0, **options):
        super().__init__(model, lr=lr, weight_decay=weight_decay, **options)
        self.momentum = momentum

    def _update(self, params, grads, *state, **step):
        self.model.ops.sgd_update(params, grads, *state, momentum=self.momentum, **step)


RULES = {"adamw": AdamW, "adam": Adam, "muon": Muon, "sgd": SGD}


def moment_count(config: OptimConfig) -> int:
    """Return how many arrays like the parameters the config's optimiser keeps."""
    return len(RULES[config.name].state_names)


def build_optimizer(
    model: Trainable, config: OptimConfig, lr_scales: Mapping[str, float] = MappingProxyType({})
) -> Optimizer:
    """Return the optimiser that a config names."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "lr_scales": lr_scales}
    if config.name == "sgd":
        return SGD(model, momentum=config.beta1, **shared)
    if config.name == "muon":
        shared |= {"matrix_lr": config.matrix_lr}
    return RULES[config.name](model, betas=(config.beta1, config.beta2), eps=config.eps, **shared)


def linear_weights(model: Trainable, lr_scales: Mapping[str, float]) -> dict[str, LinearWeight]:
    """Return the weights of the linear layers inside the blocks, by name.

    LoRA's factors are none of them.
    """
    found = {}
    for part, network in model.parts().items():
        config = network.config
        heads = tuple(n_head * config.head_width for n_head in (config.n_head, config.kv_heads, config.kv_heads))
        for name, shape in parameter_shapes(config).items():
            if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2:
                widths = heads if name.endswith("attention.qkv.weight") else shape[1:]
                whole = name_in_model(part, name)
                found[whole] = LinearWeight(model.params.offsets[whole], shape[0], widths, lr_scales.get(whole, 1.0))
    return found


def parameter_groups(
    params: Parameters,
    lr_scales: Mapping[str, float],
    weights: Mapping[str, LinearWeight] = MappingProxyType({}),
) -> list[ParameterGroup]:
    """Return the groups of the flat buffer, in order.

    A new group starts where the factor of the learning rate changes, and where the
    matrices end. Each of the parameters in `weights` is a group of its own.
    """
    kinds = {}  # offset: all of a group but its slice, and the parameter's name if the group is one parameter
    for name in sorted(params.offsets, key=params.offsets.get):
        decays = params.offsets[name] < params.n_matrix_elements
        group = lr_scales.get(name, 1.0), decays, weights.get(name)
        kinds[params.offsets[name]] = group, name if name in weights else None
    starts = [offset for offset, before in zip(kinds, [None, *kinds.values()], strict=False) if kinds[offset] != before]
    ends = [*starts[1:], len(params.flat)]
    return [ParameterGroup(slice(start, end), *kinds[start][0]) for start, end in zip(starts, ends, strict=True)]


def outside(cut: int, groups: list[slice]) -> int:
    """Return a place to cut that is in none of the groups: the cut, or the start of the
    group that it is in."""
    return next((group.start for group in groups if group.start < cut < group.stop), cut)


def _zeros_like(flat: np.ndarray) -> np.ndarray:
    """Return zeros, aligned like the parameters."""
    return aligned_zeros(flat.nbytes).view(flat.dtype)
