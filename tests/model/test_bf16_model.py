"""A model whose matrix products take bfloat16: gradients, rounded weights, learning."""

import numpy as np
import pytest
from model_cases import every_architecture, gradients_of, random_batch, set_weights_of_order_one, small_config

from npllm.errors import ConfigError
from npllm.generation import KVCache, generate_tokens
from npllm.kernels.bfloat16 import rounded, widen
from npllm.model import GPT
from npllm.optim import AdamW

EIGHT_BITS = 2.0**-8  # the largest relative error of one rounding


def relative_distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@every_architecture
def test_every_gradient_is_float32_s_up_to_rounding(architecture):
    """A gradient that lacks a term is off by its own size, a rounding by 2^-8."""
    config = small_config(n_embd=32, block_size=16, vocab_size=29, **architecture)
    batch = random_batch(config, B=8, T=16)
    gradients = {}
    for dtype in ("float32", "bf16"):
        model = GPT(config, dtype=dtype)
        set_weights_of_order_one(model, seed=1)
        loss, gradients[dtype] = gradients_of(model, batch)
        assert all(gradient.dtype == np.float32 for gradient in gradients[dtype].values())
    for name, exact in gradients["float32"].items():
        assert 0 < relative_distance(gradients["bf16"][name], exact) < 8 * EIGHT_BITS, name


@every_architecture
def test_the_logits_are_those_of_rounded_weights(architecture):
    config = small_config(n_embd=32, block_size=16, vocab_size=29, **architecture)
    model, already_rounded = GPT(config, dtype="bf16"), GPT(config, dtype="bf16")
    for each in (model, already_rounded):
        set_weights_of_order_one(each, seed=1)
    for name, array in already_rounded.params.items():
        if array.ndim == 2 and name.startswith("blocks"):
            array[:] = widen(rounded(array))
    tokens = random_batch(config, B=2, T=9).tokens
    np.testing.assert_array_equal(model.logits(tokens), already_rounded.logits(tokens))


@every_architecture
def test_every_pass_takes_the_weights_as_they_are_then(architecture):
    config = small_config(n_embd=32, block_size=16, vocab_size=29, **architecture)
    batch = random_batch(config, B=4, T=16)
    model = GPT(config, dtype="bf16")
    optimizer = AdamW(model, lr=0.1)
    for _ in range(3):
        loss, gradients = gradients_of(model, batch)
        fresh = GPT(config, dtype="bf16")
        fresh.params.flat[:] = model.params.flat
        expected_loss, expected = gradients_of(fresh, batch)
        assert loss == expected_loss
        assert all(np.array_equal(gradients[name], expected[name]) for name in expected)
        prompt = [1, 2, 3]
        greedy = {"max_tokens": 8, "temperature": 0.0}
        assert list(generate_tokens(model, prompt, **greedy)) == list(generate_tokens(fresh, prompt, **greedy))
        optimizer.step()
        assert model.loss(*batch) != loss


@every_architecture
def test_the_cache_gives_the_full_forward_s_logits(architecture):
    """The cache agrees with the full forward up to the order of sums.

    The prompt goes through tiles, single tokens through dot products. The rounded
    factors are the same.
    """
    config = small_config(n_embd=32, block_size=16, vocab_size=29, **architecture)
    model = GPT(config, dtype="bf16")
    set_weights_of_order_one(model, seed=1)
    tokens = random_batch(config, B=2, T=16).tokens
    expected, cache = model.logits(tokens), KVCache(model, batch=2)
    assert relative_distance(model.extend(tokens[:, :7], cache), expected[:, 6]) < 4 * EIGHT_BITS
    for position in range(7, 16):
        logits = model.extend(tokens[:, position : position + 1], cache)
        assert relative_distance(logits, expected[:, position]) < 4 * EIGHT_BITS


def learned_copying(dtype, seed, steps=100):
    """The loss of each step, (steps,), of a task that needs attention.

    The next token is the one before the last. A model learns this little by little, so
    that a small difference stays small. A longer way back is learned suddenly, and
    rounding decides when.
    """
    config = small_config(n_embd=32, block_size=15, vocab_size=16, n_layer=2)
    model = GPT(config, seed=seed, dtype=dtype)
    optimizer = AdamW(model, lr=3e-3)
    rng, losses = np.random.default_rng(seed), []
    for _ in range(steps):
        text = np.tile(rng.integers(0, 16, (16, 2)), 8)
        losses.append(model.loss_and_grad(text[:, :-1], text[:, 1:]))
        optimizer.step(grad_clip=1.0)
    return np.array(losses)


@pytest.mark.long
def test_the_loss_falls_as_in_float32():
    """bf16 changes a loss curve by far less than another seed does."""
    float32, bf16 = (np.stack([learned_copying(dtype, seed) for seed in range(3)]) for dtype in ("float32", "bf16"))
    assert float32[:, -1].max() < 0.5 * float32[:, 0].min()
    between_dtypes = np.abs(bf16 - float32).mean()
    between_seeds = np.mean([np.abs(float32[i] - float32[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert between_dtypes < 0.1 * between_seeds


def test_the_reference_has_no_bf16():
    with pytest.raises(ConfigError, match="reference backend has no bf16"):
        GPT(small_config(), dtype="bf16", backend="reference")
