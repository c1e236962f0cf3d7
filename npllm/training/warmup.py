"""Compiling every kernel that training, evaluation and generation use, but in float64.

Numba compiles a kernel when it is first called with arguments of new types, and keeps it on disk. So it is enough to
train each kind of model once: what differs between sizes is data. Batches are large enough to be split between threads
and small enough to be not; both kinds of kernels are called.
"""

from dataclasses import asdict
from functools import cache
from itertools import product

import numpy as np

from npllm.generation import generate_tokens
from npllm.model import GPT, Architecture, ModelConfig
from npllm.optim import OptimConfig, build_optimizer

TINY = {"n_layer": 1, "n_head": 4, "n_embd": 64, "block_size": 64, "vocab_size": 256}
ARCHITECTURES = (
    {"norm": "layernorm", "position": "learned", "mlp": "gelu"},
    {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "tie_embeddings": False},
)


def compile_kernels() -> None:
    """Call them all."""
    for architecture, dropout, dtype in product(ARCHITECTURES, (0.0, 0.1), ("float32", "bf16")):
        for optimizer in ("adamw", "sgd"):
            _call(ModelConfig(**TINY, **architecture, dropout=dropout), dtype, optimizer, policy=True)


def load_kernels(architecture: Architecture, dtype: str, optim: OptimConfig, *, policy: bool = False) -> None:
    """Call those that the training of such a model uses, whatever its size. policy: also those of log-probabilities."""
    kept = ("norm", "position", "mlp", "bias", "tie_embeddings", "dropout")
    choices = {name: value for name, value in asdict(architecture).items() if name in kept}
    _call(ModelConfig(**TINY, **choices), dtype, optim.name, policy=policy)


@cache
def _call(config: ModelConfig, dtype: str, optimizer: str, *, policy: bool) -> None:
    model = GPT(config, dtype=dtype)
    rule = build_optimizer(model, OptimConfig(name=optimizer))
    for rows, columns in ((1, 8), (8, 64)):
        tokens = np.zeros((rows, columns), np.int32)
        model.loss_and_grad(tokens, tokens)
        if policy:
            trace = model.trace(tokens)
            log_probability, _, cached = model.log_probability_forward(trace.hidden, tokens.reshape(-1))
            model.backward(trace, model.log_probability_backward(log_probability, None, cached))
        rule.step(grad_clip=1.0)
        model.loss(tokens, tokens)
        list(generate_tokens(model, [0] * columns, max_tokens=2))
