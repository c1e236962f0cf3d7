"""The whole network against a second implementation of its forward.

Gradient checks prove that the backward belongs to the forward, whatever the forward is.
So the forward is computed again here, from the papers' equations, one sequence and one
position at a time. Nothing of the package is used for that.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest
from model_cases import EVERY, random_batch, set_weights_of_order_one, small_config

from npllm.model import GPT


def plain_norm(x, p, name, config):
    """The norm of each row of x, (T, C), without the package."""
    if config.norm == "layernorm":
        x = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((x * x).mean(axis=1, keepdims=True) + config.norm_eps)
    return x / deviation * p[f"{name}.weight"] + p.get(f"{name}.bias", 0.0)


def plain_linear(x, p, name):
    return x @ p[f"{name}.weight"] + p.get(f"{name}.bias", 0.0)


def turned(x, t, theta):
    """Rotary position t for one head, (D,).

    Pair i is a complex number, which is rotated by the angle t theta^(-2i/D).
    """
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * t * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def plain_attention(x, p, name, config):
    T, (H, K, D) = len(x), (config.n_head, config.kv_heads, config.head_width)
    qkv = plain_linear(x, p, f"{name}.qkv").reshape(T, H + 2 * K, D)
    turn = partial(turned, theta=config.rope_theta) if config.position == "rotary" else lambda vector, t: vector
    if config.qk_norm:
        for t, h in product(range(T), range(H + K)):
            weight = p[f"{name}.q_norm.weight"] if h < H else p[f"{name}.k_norm.weight"]
            qkv[t, h] *= weight / (sum(qkv[t, h] ** 2) / D + config.norm_eps) ** 0.5
    y = np.zeros((T, H, D))
    for t, h in product(range(T), range(H)):
        key_head = H + h // (H // K)
        q = turn(qkv[t, h], t)
        scores = np.array([q @ turn(qkv[s, key_head], s) for s in range(t + 1)]) / D**0.5
        weights = np.exp(scores) / np.exp(scores).sum()
        y[t, h] = sum(weights[s] * qkv[s, key_head + K] for s in range(t + 1))
    return plain_linear(y.reshape(T, H * D), p, f"{name}.out")


def plain_mlp(x, p, name, mlp):
    up = plain_linear(x, p, f"{name}.up")
    if mlp == "gelu":
        hidden = up * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    elif mlp == "relu2":
        hidden = np.where(up > 0, up**2, 0.0)
    else:
        gate = plain_linear(x, p, f"{name}.gate")
        hidden = gate / (1 + np.exp(-gate)) * up
    return plain_linear(hidden, p, f"{name}.down")


def plain_logits(p, config, tokens):
    """The logits, (T, V), of one sequence of tokens, (T,)."""
    x = p["token_embedding"][tokens]
    if config.position == "learned":
        x = x + p["position_embedding"][: len(tokens)]
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        x = x + plain_attention(plain_norm(x, p, f"{block}.norm_1", config), p, f"{block}.attention", config)
        x = x + plain_mlp(plain_norm(x, p, f"{block}.norm_2", config), p, f"{block}.mlp", config.mlp)
    return plain_norm(x, p, "final_norm", config) @ p.get("lm_head", p["token_embedding"]).T


MIXED = {"norm": "layernorm", "position": "rotary", "mlp": "swiglu", "n_kv_head": 2}


@pytest.mark.parametrize("architecture", [*EVERY.values(), MIXED], ids=[*EVERY, "mixed"])
def test_logits_are_those_of_the_equations(backend, architecture):
    config = small_config(**({"n_head": 4, "n_embd": 16} | architecture))
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=10)
    tokens = random_batch(config, B=2, T=6).tokens
    for row, logits in zip(tokens, model.logits(tokens), strict=True):
        np.testing.assert_allclose(logits, plain_logits(model.params, config, row), rtol=1e-11, atol=1e-11)
