"""A model made from a base: its outputs, its new tokens, and its learning rates."""

from types import SimpleNamespace

import numpy as np
import pytest
from model.model_cases import GPT_2, LLAMA, random_batch, set_weights_of_order_one, small_config

from npllm.errors import ConfigError
from npllm.finetuning.adaptation import AdaptConfig, adapted, lr_scales
from npllm.model import GPT, ActorCritic
from npllm.optim import AdamW

FULL, LORA = AdaptConfig(), AdaptConfig(lora_rank=2, lora_alpha=3.0)
both_ways = pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])


def base_model(*, dtype="float64", **fields) -> GPT:
    base = GPT(small_config(**fields), seed=3, dtype=dtype)
    set_weights_of_order_one(base, seed=1)
    if base.frozen is not None:
        set_weights_of_order_one(SimpleNamespace(params=base.frozen), seed=2)
    return base


@both_ways
@pytest.mark.parametrize(
    "of_base",
    [{}, {"lora_rank": 3}, {"lora_rank": 3, "lora_new_tokens": 2}],
    ids=["plain base", "lora base", "lora base with new tokens"],
)
@pytest.mark.parametrize("architecture", [GPT_2, LLAMA], ids=["gpt2", "llama"])
def test_it_computes_what_the_base_does(config, of_base, architecture):
    base = base_model(**of_base, **architecture)
    model = adapted(base, config)
    tokens = random_batch(base.config, B=2, T=6).tokens
    expected = base.logits(tokens)
    np.testing.assert_array_equal(model.logits(tokens), expected)
    model.params.flat[:] += 1.0  # the parameters are copies, so the base does not change
    np.testing.assert_array_equal(base.logits(tokens), expected)
    assert (model.config.lora_rank, model.config.lora_alpha) == (config.lora_rank, config.lora_alpha)
    assert model.config.lora_new_tokens == 0  # the base's new tokens are no longer new


@both_ways
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_new_tokens_change_nothing_for_the_old_ones(config, tie_embeddings):
    base = base_model(tie_embeddings=tie_embeddings)
    V = base.config.vocab_size
    model = adapted(base, config, vocab_size=V + 3)
    tokens = random_batch(base.config, B=2, T=6).tokens
    logits = model.logits(tokens)
    assert logits.shape == (2, 6, V + 3)
    np.testing.assert_allclose(logits[..., :V], base.logits(tokens), rtol=1e-12)


@both_ways
@pytest.mark.parametrize("name", ["token_embedding", "lm_head"])
def test_new_tokens_differ_and_lie_where_tokens_lie(config, name):
    """New rows are distributed like the old ones. Equal rows would be equal tokens."""
    base = base_model(tie_embeddings=False, vocab_size=400)
    old, new = np.split(adapted(base, config, vocab_size=800, seed=1).merged()[name], 2)
    assert len(np.unique(new, axis=0)) == 400
    np.testing.assert_allclose(new.mean(axis=0), old.mean(axis=0), atol=0.25)
    np.testing.assert_allclose(new.std(axis=0), old.std(axis=0), rtol=0.25)
    other = adapted(base, config, vocab_size=800, seed=2).merged()[name]
    assert not (other[400:] == new).any()


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_with_lora_a_new_token_can_become_certain(tie_embeddings):
    """A new token that always comes next is learnt, because LoRA trains its row.

    Without training, its logit is bounded: the final norm bounds the hidden states, and
    the row is short.
    """
    base = GPT(small_config(tie_embeddings=tie_embeddings), seed=3, dtype="float64")
    V = base.config.vocab_size
    model = adapted(base, LORA, vocab_size=V + 2)
    tokens = random_batch(base.config, B=4, T=6).tokens
    optimizer = AdamW(model, lr=0.05, weight_decay=0.0)
    for _ in range(60):
        model.loss_and_grad(tokens, np.full_like(tokens, V + 1))
        optimizer.step(grad_clip=1.0)
    assert model.loss(tokens, np.full_like(tokens, V + 1)) < 0.01
    np.testing.assert_array_equal(model.merged()["token_embedding"][:V], base.params["token_embedding"])


@both_ways
def test_a_second_head_is_kept_where_the_base_has_the_same(config):
    base = base_model(n_outputs=2)
    kept, fresh = (adapted(base, config, n_outputs=n_outputs, seed=9) for n_outputs in (2, 3))
    for name in ("readout.weight", "readout.bias"):
        np.testing.assert_array_equal(kept.params[name], base.params[name])
    assert fresh.params["readout.weight"].shape == (8, 3)
    assert fresh.params["readout.weight"].any()
    assert not fresh.params["readout.bias"].any()
    other = adapted(base, config, n_outputs=3, seed=8)  # the seed decides dropout and LoRA's factors too
    assert not (other.params["readout.weight"] == fresh.params["readout.weight"]).any()
    assert (fresh.seed, other.seed) == (9, 8)
    assert "readout.weight" not in adapted(base, config).params


@both_ways
def test_dropout_and_dtype_may_be_others(config):
    base = base_model(dropout=0.1, dtype="float32")
    model = adapted(base, config, dropout=0.0, dtype="float64")
    assert (model.config.dropout, model.params.flat.dtype) == (0.0, np.float64)
    tokens = random_batch(base.config, B=2, T=6).tokens
    np.testing.assert_allclose(model.logits(tokens), base.logits(tokens), rtol=1e-4, atol=1e-4)
    assert adapted(base, config).config.dropout == 0.1


def scales_of(model, **adapt) -> dict[str, float]:
    return lr_scales(AdaptConfig(**adapt), model)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_the_rate_falls_from_layer_to_layer(tie_embeddings):
    model = base_model(n_layer=3, tie_embeddings=tie_embeddings, n_outputs=1)
    found = scales_of(model, layer_decay=0.5)
    assert found.keys() == model.params.keys()
    assert found["token_embedding"] == found["position_embedding"] == 0.5**4  # a tied head is the embedding
    for layer in range(3):
        of_layer = {scale for name, scale in found.items() if name.startswith(f"blocks.{layer}.")}
        assert of_layer == {0.5 ** (3 - layer)}
    tops = {"final_norm.weight", "final_norm.bias", "readout.weight", "readout.bias"}
    assert {name for name, scale in found.items() if scale == 1.0} == tops | (set() if tie_embeddings else {"lm_head"})


def test_frozen_blocks_are_the_first_and_the_embedding_with_them():
    model = base_model(n_layer=3)
    found = scales_of(model, frozen_blocks=2, layer_decay=0.5)
    frozen = {name for name, scale in found.items() if scale == 0.0}
    below = ("token_embedding", "position_embedding", "blocks.0.", "blocks.1.")
    assert frozen == {name for name in model.params if name.startswith(below)}
    assert {scale for name, scale in found.items() if name.startswith("blocks.2.")} == {0.5}
    assert set(scales_of(model).values()) == {1.0}


HALVED = {"frozen_blocks": 1, "layer_decay": 0.5}


def test_actor_and_critic_each_have_the_layers_of_a_model():
    """They count their own layers, even if one has fewer blocks than the other."""
    configs = {"policy": small_config(n_layer=3), "critic": small_config(n_layer=2, n_outputs=1)}
    found = scales_of(ActorCritic(*configs.values()), **HALVED)
    for part, config in configs.items():
        for name, scale in scales_of(GPT(config), **HALVED).items():
            assert found.pop(f"{part}.{name}") == scale, (part, name)
    assert not found


def test_frozen_blocks_of_actor_and_critic():
    found = scales_of(ActorCritic(small_config(n_layer=3), small_config(n_layer=3, n_outputs=1)), **HALVED)
    assert found["policy.token_embedding"] == found["critic.blocks.0.mlp.up.weight"] == 0.0
    assert found["policy.blocks.1.mlp.up.weight"] == 0.25


def test_factors_have_the_layer_of_their_matrix():
    model = GPT(small_config(n_layer=3, lora_rank=2, lora_new_tokens=1, tie_embeddings=False))
    found = scales_of(model, lora_rank=2, layer_decay=0.5)
    assert (found["token_embedding.new_rows"], found["lm_head.new_rows"]) == (0.5**4, 1.0)
    assert found["blocks.0.mlp.up.weight.lora_a"] == found["blocks.0.attention.qkv.weight.lora_b"] == 0.125


def test_an_update_moves_what_is_not_frozen():
    base, config = base_model(n_layer=3), AdaptConfig(frozen_blocks=2)
    model = adapted(base, config)
    optimizer = AdamW(model, lr=0.01, lr_scales=lr_scales(config, model))
    model.loss_and_grad(*random_batch(base.config, B=3, T=6))
    optimizer.step(grad_clip=1.0)
    moved = {name for name, array in model.params.items() if (array != base.params[name]).any()}
    assert moved == {name for name in model.params if name.startswith(("blocks.2.", "final_norm."))}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"lora_rank": -1}, "adapt.lora_rank is -1; set it to at least 0"),
        ({"lora_alpha": 0.0}, "adapt.lora_alpha is 0.0; set it above 0"),
        ({"frozen_blocks": -1}, "adapt.frozen_blocks is -1; set it to at least 0"),
        ({"layer_decay": 0.0}, "adapt.layer_decay is 0.0; set it above 0 and to at most 1"),
        ({"layer_decay": 1.1}, "adapt.layer_decay is 1.1; set"),
        ({"lora_rank": 2, "frozen_blocks": 1}, "adapt.lora_rank freezes every block already"),
    ],
)
def test_settings_out_of_range_are_named(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        AdaptConfig(**fields)


def test_more_frozen_blocks_than_there_are():
    with pytest.raises(ConfigError, match="adapt.frozen_blocks is 3, but the model has 2 blocks; lower it"):
        adapted(base_model(), AdaptConfig(frozen_blocks=3))
    adapted(base_model(), AdaptConfig(frozen_blocks=2))
