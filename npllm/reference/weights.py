"""The size of the plain network; name, shape and initial values of every weight."""

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from npllm.reference.random import random_normal
from npllm.reference.random_streams import INITIAL_VALUES


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the plain network asks of a config; `npllm.ModelConfig` serves as well."""

    vocab_size: int  # V
    block_size: int  # the longest sequence in tokens
    n_layer: int  # L
    n_head: int  # H
    kv_heads: int  # K, a divisor of H
    head_width: int  # D
    n_embd: int  # C
    mlp_width: int  # F
    norm: str = "layernorm"  # or "rmsnorm"
    norm_eps: float = 1e-5
    position: str = "learned"  # or "rotary"
    rope_theta: float = 10000.0
    qk_norm: bool = False  # RMSNorm of each query head and key head
    mlp: str = "gelu"  # or "swiglu" or "relu2"
    bias: bool = True  # in linear layers and LayerNorm
    tie_embeddings: bool = True  # the head is the table of the embedding


def weight_shapes(config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the forward pass.

    Weights of linear layers are (in, out).
    """
    C, F, V = config.n_embd, config.mlp_width, config.vocab_size
    H, K, D = config.n_head, config.kv_heads, config.head_width
    shapes: dict[str, tuple[int, ...]] = {}

    def add_linear(name, n_in, n_out):
        shapes[f"{name}.weight"] = (n_in, n_out)
        if config.bias:
            shapes[f"{name}.bias"] = (n_out,)

    def add_norm(name):
        shapes[f"{name}.weight"] = (C,)
        if config.bias and config.norm == "layernorm":
            shapes[f"{name}.bias"] = (C,)

    shapes["token_embedding"] = (V, C)
    if config.position == "learned":
        shapes["position_embedding"] = (config.block_size, C)
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        add_norm(f"{block}.norm_1")
        add_linear(f"{block}.attention.qkv", C, (H + 2 * K) * D)
        if config.qk_norm:
            shapes[f"{block}.attention.q_norm.weight"] = (D,)
            shapes[f"{block}.attention.k_norm.weight"] = (D,)
        add_linear(f"{block}.attention.out", H * D, C)
        add_norm(f"{block}.norm_2")
        if config.mlp == "swiglu":
            add_linear(f"{block}.mlp.gate", C, F)
        add_linear(f"{block}.mlp.up", C, F)
        add_linear(f"{block}.mlp.down", F, C)
    add_norm("final_norm")
    if not config.tie_embeddings:
        shapes["lm_head"] = (V, C)
    return shapes


def initial_weights(config, seed: int) -> dict[str, np.ndarray]:
    """Return GPT-2's initial values by name, in float64.

    Norm weights are 1, biases are 0, and matrices are N(0, std).
    """
    weights = {}
    for index, (name, shape) in enumerate(weight_shapes(config).items()):
        if len(shape) == 1:
            weights[name] = np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            draws = random_normal(prod(shape), seed=seed, stream=INITIAL_VALUES[index]).reshape(shape)
            weights[name] = initial_std(name, config.n_layer) * draws
    return weights


def initial_std(name: str, n_layer: int) -> float:
    r"""Return 0.02, or $0.02 / \sqrt{2 L}$ for a matrix that adds to the stream.

    There are 2L such matrices. A sum of 2L independent branches then has the variance
    of one. (Radford et al.,
    "Language models are unsupervised multitask learners", 2019.)
    """
    adds_to_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
    return 0.02 / sqrt(2 * n_layer) if adds_to_stream else 0.02
