"""Optimisers: one pass over the model's flat buffers, with clipping and the reset of the gradients inside it."""

from abc import ABC, abstractmethod
from math import isfinite

import numpy as np

from npllm.aligned import aligned_zeros
from npllm.errors import TrainingError
from npllm.model import GPT
from npllm.optim.config import OptimConfig


class Optimizer(ABC):
    """What all update rules share: clipping, decay on matrices only, named state as long as the flat parameters."""

    state_names: tuple[str, ...] = ()

    def __init__(self, model: GPT, *, lr: float, weight_decay: float):
        self.model = model
        self.lr = lr
        self.weight_decay = weight_decay
        self.updates = 0  # how many were made
        self.state = {name: _zeros_like(model.params.flat) for name in self.state_names}

    def gradient_norm(self) -> float:
        """Euclidean norm of `model.grads`."""
        return self.model.ops.gradient_norm(self.model.grads.flat)

    def step(self, *, grad_clip: float = 0.0, lr: float | None = None, norm: float | None = None) -> float:
        """Update the parameters from `model.grads` and set those to zero.

        grad_clip: a longer gradient is shortened to this norm; 0 = never. lr: instead of the optimiser's own, for this
        update. norm: what `gradient_norm` gave, where it was asked. Returns the norm of the gradient before clipping.
        A gradient that is not finite raises TrainingError and leaves everything as it was.
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
        matrices, vectors = slice(0, params.n_matrix_elements), slice(params.n_matrix_elements, None)
        for part, weight_decay in ((matrices, self.weight_decay), (vectors, 0.0)):
            state = [array[part] for array in self.state.values()]
            self._update(
                params.flat[part],
                grads.flat[part],
                *state,
                lr=self.lr if lr is None else lr,
                weight_decay=weight_decay,
                grad_scale=scale,
            )
        return norm

    @abstractmethod
    def _update(self, params, grads, *state, lr: float, weight_decay: float, grad_scale: float) -> None:
        """Apply the rule to one part of the flat buffers, and set that part of grads to zero."""


class Adam(Optimizer):
    """Adam; a weight decay is part of the gradient. Equations: `npllm/reference/adam.py`."""

    state_names = ("adam_m", "adam_v")
    decoupled = False

    def __init__(self, model: GPT, *, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
        super().__init__(model, lr=lr, weight_decay=weight_decay)
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
    """Adam with decoupled weight decay. Equations: `npllm/reference/adam.py`."""

    decoupled = True

    def __init__(self, model: GPT, *, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        super().__init__(model, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class SGD(Optimizer):
    """Gradient descent with momentum. Equations: `npllm/reference/sgd.py`."""

    state_names = ("velocity",)

    def __init__(self, model: GPT, *, lr=1e-1, momentum=0.9, weight_decay=0.0):
        super().__init__(model, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum

    def _update(self, params, grads, *state, **step):
        self.model.ops.sgd_update(params, grads, *state, momentum=self.momentum, **step)


def build_optimizer(model: GPT, config: OptimConfig) -> Optimizer:
    """The optimiser that a config names."""
    if config.name == "sgd":
        return SGD(model, lr=config.lr, momentum=config.beta1, weight_decay=config.weight_decay)
    rule = AdamW if config.name == "adamw" else Adam
    betas = (config.beta1, config.beta2)
    return rule(model, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay)


def _zeros_like(flat: np.ndarray) -> np.ndarray:
    """Zeros, aligned like the parameters."""
    return aligned_zeros(flat.nbytes).view(flat.dtype)
