"""Compiling every kernel that training, evaluation, generation and the tokenizer use,
but in float64.

Numba compiles a kernel when it is first called with arguments of new types, and keeps
it on disk. So it is enough to train each kind of model once, at any size. One batch is
large enough to be split between threads and one is not, so that both kinds of kernels
are called.
"""

from dataclasses import asdict
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from npllm.generation import generate_tokens
from npllm.model import GPT, Architecture, ModelConfig
from npllm.optim import OptimConfig, build_optimizer
from npllm.tokenizer import fast_path

TINY = {"n_layer": 1, "n_head": 4, "n_embd": 64, "block_size": 64, "vocab_size": 256}
ARCHITECTURES = (
    {"norm": "layernorm", "position": "learned", "mlp": "gelu"},
    {"norm": "layernorm", "position": "learned", "mlp": "relu2"},
    {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "tie_embeddings": False, "qk_norm": True},
)
SHAPES = ((1, 8), (8, 64))  # (B, T) of the batches


class Kind(NamedTuple):
    """What decides which kernels a training calls."""

    config: ModelConfig  # of a tiny model
    dtype: str
    optimizer: str
    policy: bool  # also those of log-probabilities
    generates: bool  # also those of generation


def every_kind() -> list[Kind]:
    """Kinds that together call all kernels."""
    return [
        Kind(ModelConfig(**TINY, **architecture, dropout=dropout), dtype, optimizer, policy=True, generates=True)
        for architecture, dropout, dtype in product(ARCHITECTURES, (0.0, 0.1), ("float32", "bf16"))
        for optimizer in ("muon", "sgd")
    ]


def kind_of(
    architecture: Architecture, dtype: str, optim: OptimConfig, *, policy: bool = False, generates: bool = False
) -> Kind:
    """The kind of a training, whatever its size."""
    kept = ("norm", "position", "qk_norm", "mlp", "bias", "tie_embeddings", "dropout")
    choices = {name: value for name, value in asdict(architecture).items() if name in kept}
    return Kind(ModelConfig(**TINY, **choices), dtype, optim.name, policy, generates)


def compile_kernels() -> None:
    """Call them all."""
    for kind in every_kind():
        load_kernels(kind)
    fast_path.load_kernels()


@cache
def load_kernels(kind: Kind) -> None:
    """Call the kernels of one kind of training."""
    model = GPT(kind.config, dtype=kind.dtype)
    train_once(model, kind)
    if kind.generates:
        for _, columns in SHAPES:
            list(generate_tokens(model, [0] * columns, max_tokens=2))


def train_once(model: GPT, kind: Kind) -> None:
    """Update and evaluate a model of this kind, once for each shape."""
    rule = build_optimizer(model, OptimConfig(name=kind.optimizer))
    for shape in SHAPES:
        tokens = np.zeros(shape, np.int32)
        model.loss_and_grad(tokens, tokens)
        if kind.policy:
            trace = model.trace(tokens)
            log_probability, _, cached = model.log_probability_forward(trace.hidden, tokens.reshape(-1))
            model.backward(trace, model.log_probability_backward(log_probability, None, cached))
        rule.step(grad_clip=1.0)
        model.loss(tokens, tokens)
