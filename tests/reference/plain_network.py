"""Small plain networks with weights of order one, and rows of tokens for them."""

from itertools import product

import numpy as np
from order_one import fill_with_order_one

from npllm.reference.weights import TransformerConfig, weight_shapes

NORMS, POSITIONS, MLPS = ("layernorm", "rmsnorm"), ("learned", "rotary"), ("gelu", "swiglu")

# All choices of norm, position and MLP, with the other choices set so that any two
# values of two choices occur together in two variants. QK-norm is on in half of them.
EIGHT_VARIANTS = [
    {
        "norm": NORMS[norm],
        "position": POSITIONS[position],
        "mlp": MLPS[mlp],
        "kv_heads": 2 if norm == position else 1,
        "bias": position == mlp,
        "tie_embeddings": norm == mlp,
        "qk_norm": (norm + position + mlp) % 2 == 1,
    }
    for norm, position, mlp in product((0, 1), repeat=3)
]


def plain_config(**changes) -> TransformerConfig:
    sizes = {"vocab_size": 7, "block_size": 4, "n_layer": 2, "n_head": 2, "kv_heads": 1, "n_embd": 8}
    sizes |= {"head_width": 6, "mlp_width": 12, "norm_eps": 1e-2, "rope_theta": 50.0}
    return TransformerConfig(**(sizes | changes))


def weights_of_order_one(config, seed: int) -> dict[str, np.ndarray]:
    """Name -> weight of order one, for every weight of the network."""
    weights = {name: np.empty(shape) for name, shape in weight_shapes(config).items()}
    fill_with_order_one(weights, seed)
    return weights


def random_rows(config, B: int, T: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, (B, T) each; one target is ignored."""
    tokens, targets = np.random.default_rng(seed).integers(0, config.vocab_size, (2, B, T))
    targets[0, 1] = -1
    return tokens, targets
