"""The weights of a network as attributes, such as `block.qkv.weight`.

Views are made once for the weights and once for their gradients. They hold the arrays
themselves, so they show whatever is written into these later.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from npllm.model.config import ModelConfig


class Linear(NamedTuple):
    weight: np.ndarray  # (in, out)
    bias: np.ndarray | None  # (out,)


class Norm(NamedTuple):
    weight: np.ndarray  # (C,)
    bias: np.ndarray | None  # (C,), of LayerNorm only


class Block(NamedTuple):
    norm_1: Norm
    qkv: Linear
    q_norm: np.ndarray | None  # (D,), the weight that all query heads share; with qk_norm
    k_norm: np.ndarray | None  # (D,), the weight that all key heads share
    out: Linear
    norm_2: Norm
    up: Linear
    gate: Linear | None  # with SwiGLU
    down: Linear


class Network(NamedTuple):
    token_embedding: np.ndarray  # (V, C)
    position_embedding: np.ndarray | None  # (block_size, C), with learned positions
    blocks: list[Block]
    final_norm: Norm
    head: np.ndarray  # (V, C): `token_embedding` itself where it is tied


def network_views(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> Network:
    """Return views of the arrays that `weight_shapes` names: weights, or gradients."""
    return Network(
        arrays["token_embedding"],
        arrays.get("position_embedding"),
        [_block(arrays, f"blocks.{layer}", config) for layer in range(config.n_layer)],
        Norm(*_weight_and_bias(arrays, "final_norm")),
        arrays["token_embedding" if config.tie_embeddings else "lm_head"],
    )


def _block(arrays, name, config) -> Block:
    def linear(part):
        return Linear(*_weight_and_bias(arrays, f"{name}.{part}"))

    return Block(
        norm_1=Norm(*_weight_and_bias(arrays, f"{name}.norm_1")),
        qkv=linear("attention.qkv"),
        q_norm=arrays.get(f"{name}.attention.q_norm.weight"),
        k_norm=arrays.get(f"{name}.attention.k_norm.weight"),
        out=linear("attention.out"),
        norm_2=Norm(*_weight_and_bias(arrays, f"{name}.norm_2")),
        up=linear("mlp.up"),
        gate=linear("mlp.gate") if config.mlp == "swiglu" else None,
        down=linear("mlp.down"),
    )


def _weight_and_bias(arrays, name):
    return arrays[f"{name}.weight"], arrays.get(f"{name}.bias")
