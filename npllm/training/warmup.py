"""Compiling every kernel that training, evaluation and generation use, but in float64.

Numba compiles a kernel when it is first called with arguments of new types, and keeps it on disk. So it is enough to
train each kind of model once: what differs between sizes is data. Batches are large enough to be split between threads
and small enough to be not; both kinds of kernels are called.
"""

from itertools import product

import numpy as np

from npllm.generation import generate_tokens
from npllm.model import GPT, ModelConfig
from npllm.optim import SGD, AdamW

ARCHITECTURES = (
    {"norm": "layernorm", "position": "learned", "mlp": "gelu"},
    {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "tie_embeddings": False},
)


def compile_kernels() -> None:
    """Call them all."""
    for architecture, dropout, dtype in product(ARCHITECTURES, (0.0, 0.1), ("float32", "bf16")):
        config = ModelConfig(
            n_layer=1, n_head=4, n_embd=64, block_size=64, vocab_size=256, dropout=dropout, **architecture
        )
        model = GPT(config, dtype=dtype)
        for rows, columns in ((1, 8), (8, 64)):
            tokens = np.zeros((rows, columns), np.int32)
            model.loss_and_grad(tokens, tokens)
            model.loss(tokens, tokens)
            for optimizer in (AdamW(model, lr=1e-3), SGD(model, lr=1e-3, momentum=0.9)):
                optimizer.step(grad_clip=1.0)
            list(generate_tokens(model, [0] * columns, max_tokens=2))
