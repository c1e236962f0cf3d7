"""The initial parameters, which training starts from."""

from math import log, sqrt

import numpy as np
import pytest

from npllm.model import GPT, ModelConfig


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("vocab_size", [65, 1000])
def test_first_loss_is_that_of_a_uniform_guess(backend, vocab_size, tie_embeddings):
    config = ModelConfig(n_embd=128, block_size=64, vocab_size=vocab_size, tie_embeddings=tie_embeddings)
    model = GPT(config, backend=backend)
    tokens, targets = np.random.default_rng(0).integers(0, vocab_size, (2, 2, 64))
    assert model.loss(tokens, targets) == pytest.approx(log(vocab_size), abs=0.1)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu", "relu2"])
def test_distribution_of_every_parameter(mlp):
    """Mean and standard deviation of each matrix are within five standard errors.

    Of n draws with deviation s the standard errors are s/sqrt(n) and s/sqrt(2n).
    """
    sizes = {"n_layer": 3, "n_embd": 96, "vocab_size": 50, "block_size": 32}
    config = ModelConfig(**sizes, mlp=mlp, tie_embeddings=False, qk_norm=True)
    for name, array in GPT(config, backend="reference").params.items():
        if array.ndim == 2:
            is_residual_projection = "attention.out" in name or "mlp.down" in name
            std = 0.02 / sqrt(6) if is_residual_projection else 0.02
            assert abs(array.mean()) < 5 * std / sqrt(array.size), name
            assert array.std() == pytest.approx(std, rel=5 / sqrt(2 * array.size)), name
            assert abs(np.corrcoef(array[:-1].ravel(), array[1:].ravel())[0, 1]) < 5 / sqrt(array.size), name
        elif name.endswith("bias"):
            assert not array.any(), name
        else:
            assert np.all(array == 1.0), name


def test_every_matrix_has_a_stream_of_its_own():
    params = GPT(ModelConfig(vocab_size=9, tie_embeddings=False), backend="reference").params
    starts = [tuple(np.sign(array.flat[:64])) for array in params.values() if array.ndim == 2]
    assert len(set(starts)) == len(starts) == 19


def test_seed_decides_the_bits(backend):
    config = ModelConfig(n_layer=1, n_embd=16, vocab_size=7)
    one, again, other = (GPT(config, seed=seed, backend=backend).params for seed in (3, 3, 4))
    assert one.flat.tobytes() == again.flat.tobytes()
    assert np.count_nonzero(one["token_embedding"] == other["token_embedding"]) == 0


def test_float32_values_are_the_rounded_float64_values():
    config = ModelConfig(n_layer=1, n_embd=16, vocab_size=7)
    single, double = (GPT(config, dtype=dtype, backend="reference").params for dtype in ("float32", "float64"))
    for name, array in double.items():
        np.testing.assert_array_equal(single[name], array.astype(np.float32), err_msg=name)


def test_known_values():
    """Frozen: a run must start from the same values after any change of the code."""
    params = GPT(ModelConfig(vocab_size=65), seed=0, dtype="float64", backend="reference").params
    known = {
        "token_embedding": [-0.04513038325018886, -0.029776854906598805, -0.009274705430195037],
        "blocks.0.mlp.down.weight": [-0.001396708046625049, 0.004182453706710704, 2.2917680895304848e-05],
    }
    for name, values in known.items():
        np.testing.assert_allclose(params[name].flat[:3], values, rtol=1e-12, err_msg=name)
