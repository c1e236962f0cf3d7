"""Optimisers: one pass over the model's flat buffers.

The pass also clips the gradients and sets them to zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from npllm.errors import TrainingError
from npllm.memory.aligned import aligned_zeros
from npllm.model import Parameters, Trainable
from npllm.optim.config import OptimConfig


class ParameterGroup(NamedTuple):
    """A slice of the flat buffers whose elements are updated alike."""

    where: slice
    lr_scale: float  # 0 = frozen
    decays: bool


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
        self.state = {name: _zeros_like(model.params.flat) for name in self.state_names}
        self._groups = parameter_groups(model.params, lr_scales)

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of `model.grads`.

        The gradients of frozen parameters are set to zero first.
        """
        for where, lr_scale, _ in self._groups:
            if lr_scale == 0.0:
                self.model.grads.flat[where] = 0.0
        return self.model.ops.gradient_norm(self.model.grads.flat)

    def step(self, *, grad_clip: float = 0.0, lr: float | None = None, norm: float | None = None) -> float:
        """Update the parameters from `model.grads`, and set these to zero.

        grad_clip: a gradient with a larger norm is scaled down to this norm; 0 = never.
        lr: replaces the optimiser's own for this update. norm: the result of
        `gradient_norm`, if it was computed before.

        Returns the norm of the gradient before clipping. Raises TrainingError if the
        gradient is not finite, and leaves everything as it was.
        """
        params, grads = self.model.params, self.model.grads
        norm = self.gradient_norm() if norm is None else norm
        if not isfinite(norm):
            raise TrainingError(
                f"The gradient of update {self.updates + 1} is not finite ({norm}); lower optim.lr or lengthen "
                f"optim.warmup_steps."
            )
        scale = grad_clip / norm if 0.0 < grad_clip < norm else 1.0
        self.updates += 1
        for part, lr_scale, decays in self._groups:
            if lr_scale == 0.0:
                continue
            state = [array[part] for array in self.state.values()]
            self._update(
                params.flat[part],
                grads.flat[part],
                *state,
                lr=lr_scale * (self.lr if lr is None else lr),
                weight_decay=self.weight_decay if decays else 0.0,
                grad_scale=scale,
            )
        return norm

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


class SGD(Optimizer):
    """Gradient descent with momentum. See `npllm/reference/sgd.py`."""

    state_names = ("velocity",)

    def __init__(self, model: Trainable, *, lr=1e-1, momentum=0.9, weight_decay=0.0, **options):
        super().__init__(model, lr=lr, weight_decay=weight_decay, **options)
        self.momentum = momentum

    def _update(self, params, grads, *state, **step):
        self.model.ops.sgd_update(params, grads, *state, momentum=self.momentum, **step)


RULES = {"adamw": AdamW, "adam": Adam, "sgd": SGD}


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
    return RULES[config.name](model, betas=(config.beta1, config.beta2), eps=config.eps, **shared)


def parameter_groups(params: Parameters, lr_scales: Mapping[str, float]) -> list[ParameterGroup]:
    """Return the groups of the flat buffer, in order.

    A new group starts where the factor of the learning rate changes, and where the
    matrices end.
    """
    kinds = [
        (params.offsets[name], lr_scales.get(name, 1.0), params.offsets[name] < params.n_matrix_elements)
        for name in sorted(params.offsets, key=params.offsets.get)
    ]
    firsts = [kind for before, kind in zip([None, *kinds], kinds, strict=False) if not before or before[1:] != kind[1:]]
    ends = [offset for offset, *_ in firsts[1:]] + [len(params.flat)]
    return [ParameterGroup(slice(first, end), *kind) for (first, *kind), end in zip(firsts, ends, strict=True)]


def _zeros_like(flat: np.ndarray) -> np.ndarray:
    """Return zeros, aligned like the parameters."""
    return aligned_zeros(flat.nbytes).view(flat.dtype)
