"""LoRA: merged weights, gradients of the factors, frozen weights, shared storage."""

from types import SimpleNamespace

import numpy as np
import pytest
from gradient_check import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import (
    GPT_2,
    LLAMA,
    every_architecture,
    gradients_of,
    random_batch,
    set_weights_of_order_one,
    shapes,
    small_config,
)

from npllm.errors import ConfigError
from npllm.generation import KVCache, generate_tokens
from npllm.kernels.bfloat16 import rounded, widen
from npllm.model import GPT, ModelConfig, Storage
from npllm.model.lora import new_workspace
from npllm.optim import AdamW

LORA = {"lora_rank": 3, "lora_alpha": 2.0}  # the scale is 2/3: neither 1 nor its own square


def order_one_model(config: ModelConfig, seed: int = 0, **options) -> GPT:
    """A model with factors and frozen weights of order one.

    B is not zero, as it is in the initial state.
    """
    model = GPT(config, seed=seed, **({"dtype": "float64"} | options))
    set_weights_of_order_one(model, seed)
    set_weights_of_order_one(SimpleNamespace(params=model.frozen), seed + 1)
    return model


def plain_model(model: GPT) -> GPT:
    """The same model without LoRA: its weights are W0 + s A B, multiplied out here."""
    fields = {name: value for name, value in vars(model.config).items() if not name.startswith("lora")}
    plain = GPT(ModelConfig(**fields), seed=model.seed, dtype=model.dtype_name)
    scale = model.config.lora_alpha / model.config.lora_rank
    for name, weight in plain.params.items():
        weight[...] = model.params[name] if name.startswith("readout") else model.frozen[name]
        if f"{name}.lora_a" in model.params:
            weight += scale * (model.params[f"{name}.lora_a"] @ model.params[f"{name}.lora_b"])
        if f"{name}.new_rows" in model.params:
            weight[len(weight) - model.config.lora_new_tokens :] = model.params[f"{name}.new_rows"]
    return plain


@every_architecture
def test_every_matrix_of_the_blocks_has_factors_and_nothing_else_is_trained(architecture):
    model = GPT(small_config(**architecture, **LORA))
    matrices = {name for name, array in model.frozen.items() if name.startswith("blocks.") and array.ndim == 2}
    assert set(model.params) == {f"{name}.lora_{factor}" for name in matrices for factor in "ab"}
    assert len(matrices) == 2 * (5 if architecture["mlp"] == "swiglu" else 4)
    for name in matrices:
        n_in, n_out = model.frozen[name].shape
        assert (model.params[f"{name}.lora_a"].shape, model.params[f"{name}.lora_b"].shape) == ((n_in, 3), (3, n_out))


@every_architecture
def test_new_tokens_have_rows_of_their_own(architecture):
    """The lm_head has them too where it is not the token embedding."""
    model = GPT(small_config(**architecture, **LORA, lora_new_tokens=4))
    tables = {"token_embedding"} if architecture.get("tie_embeddings", True) else {"token_embedding", "lm_head"}
    rows = {name: array.shape for name, array in model.params.items() if ".lora_" not in name}
    assert rows == {f"{name}.new_rows": (4, 8) for name in tables}


@every_architecture
@pytest.mark.parametrize("new", [0, 3])
def test_the_forward_is_that_of_the_merged_weights(backend, architecture, new):
    config = small_config(dropout=0.3, n_outputs=2, **architecture, **LORA, lora_new_tokens=new)
    model = order_one_model(config, backend=backend)
    plain = plain_model(model)
    batch = random_batch(config, B=3, T=6)
    np.testing.assert_allclose(model.logits(batch.tokens), plain.logits(batch.tokens), rtol=1e-12, atol=1e-12)
    hidden, plain_hidden = (each.trace(batch.tokens, step=3).hidden for each in (model, plain))
    np.testing.assert_allclose(hidden, plain_hidden, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model.readout(hidden), plain.readout(plain_hidden), rtol=1e-12, atol=1e-12)
    assert model.loss_and_grad(*batch) == pytest.approx(plain.loss_and_grad(*batch), rel=1e-12)


@pytest.mark.parametrize("architecture", [GPT_2, LLAMA], ids=["gpt2", "llama"])
@settings(max_examples=3)
@given(
    case=shapes(),
    rank=st.integers(1, 3),
    alpha=st.sampled_from([0.5, 4.0]),
    dropout=st.sampled_from([0.0, 0.3]),
    new=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
def test_gradient_of_everything_that_is_trained(backend, architecture, case, rank, alpha, dropout, new, seed):
    """Gradients of the factors and of the rows of new tokens are right.

    The loss is that of the language model plus one on the second head. Both gradients
    are added twice, which catches one that is overwritten.
    """
    fields, B, T = case
    choices = {name: value for name, value in architecture.items() if name != "n_kv_head"}
    lora = {"lora_rank": rank, "lora_alpha": alpha, "lora_new_tokens": new}
    config = ModelConfig(**fields, **choices, dropout=dropout, n_outputs=2, **lora)
    model = order_one_model(config, seed, backend=backend)
    batch = random_batch(config, B, T, seed)
    weights = np.random.default_rng(seed).standard_normal((B * T, 2))  # dL/d(outputs of the second head)
    how = {"step": seed % 7, "first_row": 2}
    n_targets = int((batch.targets >= 0).sum())

    def loss_now():
        trace = model.trace(batch.tokens, **how)
        log_probability, *_ = model.log_probability_forward(trace.hidden, batch.targets.reshape(-1))
        return float((model.readout(trace.hidden) * weights).sum() - log_probability.sum() / n_targets)

    model.grads.flat[:] = 0.0
    for _ in range(2):
        model.loss_and_grad(*batch, **how)
        trace = model.trace(batch.tokens, **how)
        model.backward(trace, model.readout_backward(weights, trace.hidden))
    gradients = {name: gradient / 2 for name, gradient in model.grads.items()}
    check_gradients(loss_now, dict(model.params), gradients, elementwise_up_to=12)


def test_it_begins_as_its_base():
    """B = 0 adds nothing, to the last bit. A is not zero, or nothing would learn."""
    config = small_config()
    base = GPT(config, seed=5)
    model = GPT(small_config(**LORA), seed=5, storage=Storage(frozen=base.params))
    tokens = random_batch(config, B=2, T=6).tokens
    np.testing.assert_array_equal(model.logits(tokens), base.logits(tokens))
    assert all(array.any() == name.endswith("lora_a") for name, array in model.params.items())


@pytest.mark.parametrize("dtype", ["float64", "bf16"])
def test_training_moves_factors_and_new_rows_only(dtype):
    model = order_one_model(small_config(**LORA, lora_new_tokens=2), dtype=dtype)
    before, frozen = model.params.flat.copy(), model.frozen.flat.copy()
    batch, optimizer = random_batch(model.config, B=4, T=6), AdamW(model, lr=0.02, weight_decay=0.1)
    losses = [(model.loss_and_grad(*batch), optimizer.step())[0] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_array_equal(model.frozen.flat, frozen)
    assert all((model.params.flat != before)[offset] for offset in model.params.offsets.values())
    assert not model.dweights.flat.any()


def test_models_that_share_take_turns():
    """Two models may share frozen weights and one workspace, and train in turn.

    They end with the same bits as with workspaces of their own. Each has its own rows
    for new tokens.
    """
    config = small_config(n_outputs=1, dropout=0.2, **LORA, lora_new_tokens=4)
    batches = [random_batch(config, B=3, T=6, seed=seed) for seed in (1, 2)]

    def trained(shared: bool) -> list[np.ndarray]:
        frozen = order_one_model(config).frozen
        workspace = new_workspace(config, "float64") if shared else None
        models = [
            GPT(config, seed=seed, dtype="float64", storage=Storage(frozen=frozen, workspace=workspace))
            for seed in (1, 2)
        ]
        optimizers = [AdamW(model, lr=0.02) for model in models]
        for step in range(3):
            for model, batch in zip(models, batches, strict=True):
                model.loss_and_grad(*batch, step=step)
            for optimizer in optimizers:
                optimizer.step()
        return [model.params.flat for model in models] + [model.logits(batches[0].tokens) for model in models]

    for alone, together in zip(trained(False), trained(True), strict=True):
        np.testing.assert_array_equal(together, alone)


def test_a_text_is_written_with_the_factors_as_they_are_then():
    config = small_config(**LORA, lora_new_tokens=3)
    model = order_one_model(config)
    for seed in (0, 7):
        set_weights_of_order_one(model, seed)
        written, expected = (
            list(generate_tokens(each, [1, 2], max_tokens=9, temperature=0.0)) for each in (model, plain_model(model))
        )
        assert written == expected
    cache, tokens = KVCache(model, batch=2), random_batch(config, B=2, T=6).tokens
    model.extend(tokens[:, :4], cache)
    np.testing.assert_allclose(model.extend(tokens[:, 4:], cache), model.logits(tokens)[:, -1], rtol=1e-9)


@every_architecture
def test_bf16_rounds_the_merged_weights(architecture):
    """Frozen weights are not rounded: their rounding would swallow small factors."""
    config = small_config(n_embd=32, block_size=16, vocab_size=29, **architecture, **LORA)
    model = order_one_model(config, dtype="bf16")
    plain = GPT(plain_model(model).config, dtype="bf16")
    for name, weight in plain.params.items():
        weight[...] = model.merged()[name]
        if weight.ndim == 2 and name.startswith("blocks"):
            weight[...] = widen(rounded(weight))
    batch = random_batch(config, B=2, T=9)
    np.testing.assert_array_equal(model.logits(batch.tokens), plain.logits(batch.tokens))
    assert model.params.flat.dtype == model.frozen.flat.dtype == np.float32
    exact = order_one_model(config, dtype="float32")
    for name, gradient in gradients_of(exact, batch)[1].items():
        error = np.linalg.norm(gradients_of(model, batch)[1][name] - gradient) / np.linalg.norm(gradient)
        assert 0 < error < 2.0**-5, name
    with pytest.raises(ConfigError, match="The reference backend has no bf16"):
        GPT(config, dtype="bf16", backend="reference")
