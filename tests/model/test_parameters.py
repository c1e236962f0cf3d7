"""Flat parameters: names, offsets in memory, and the gaps between the arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import GPT_2, LLAMA, random_batch, shapes, small_config

from npllm.model import GPT, ModelConfig, Parameters
from npllm.model.parameters import parameter_shapes, within
from npllm.optim import AdamW


def test_names_and_shapes_of_gpt_2():
    config = small_config(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=11)
    assert parameter_shapes(config) == {
        "token_embedding": (11, 8),
        "position_embedding": (6, 8),
        "blocks.0.norm_1.weight": (8,),
        "blocks.0.norm_1.bias": (8,),
        "blocks.0.attention.qkv.weight": (8, 24),
        "blocks.0.attention.qkv.bias": (24,),
        "blocks.0.attention.out.weight": (8, 8),
        "blocks.0.attention.out.bias": (8,),
        "blocks.0.norm_2.weight": (8,),
        "blocks.0.norm_2.bias": (8,),
        "blocks.0.mlp.up.weight": (8, 32),
        "blocks.0.mlp.up.bias": (32,),
        "blocks.0.mlp.down.weight": (32, 8),
        "blocks.0.mlp.down.bias": (8,),
        "final_norm.weight": (8,),
        "final_norm.bias": (8,),
    }


def test_names_and_shapes_of_llama():
    config = small_config(n_layer=1, n_head=4, n_embd=24, vocab_size=11, **LLAMA)
    assert parameter_shapes(config) == {
        "token_embedding": (11, 24),
        "blocks.0.norm_1.weight": (24,),
        "blocks.0.attention.qkv.weight": (24, 36),  # 4 query heads, a key head and a value head of width 6
        "blocks.0.attention.out.weight": (24, 24),
        "blocks.0.norm_2.weight": (24,),
        "blocks.0.mlp.gate.weight": (24, 64),  # 8/3 of 24, in units of 32
        "blocks.0.mlp.up.weight": (24, 64),
        "blocks.0.mlp.down.weight": (64, 24),
        "final_norm.weight": (24,),
        "lm_head": (11, 24),
    }


def test_rmsnorm_never_has_a_bias():
    names = parameter_shapes(small_config(norm="rmsnorm", bias=True))
    assert "blocks.0.mlp.up.bias" in names
    assert not [name for name in names if "norm" in name and name.endswith("bias")]


def test_count_of_gpt_2_small():
    """The published size of GPT-2 small is 124,439,808 parameters."""
    config = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(config).values()) == 124_439_808


def test_count_leaves_out_the_gaps():
    params = Parameters({"a": (3, 5), "b": (2,)}, "float32")
    assert params.count == 17
    assert len(params.flat) == 32


@given(case=shapes(), llama=st.booleans(), dtype=st.sampled_from(["float32", "float64"]))
def test_views_tile_the_flat_buffer(case, llama, dtype):
    """Views are aligned, disjoint and in the buffer, matrices first; gaps are zero."""
    fields, _, _ = case
    shapes_by_name = parameter_shapes(ModelConfig(**((LLAMA if llama else GPT_2) | fields)))
    params = Parameters(shapes_by_name, dtype)
    assert params.flat.dtype == dtype
    assert not params.flat.any()
    owner = np.full(len(params.flat), -1)
    for index, (name, view) in enumerate(params.items()):
        assert view.shape == shapes_by_name[name]
        assert view.ctypes.data % 64 == 0, name
        start = (view.ctypes.data - params.flat.ctypes.data) // view.itemsize
        assert start == params.offsets[name]
        assert np.all(owner[start : start + view.size] == -1), f"{name} overlaps"
        owner[start : start + view.size] = index
        view[...] = index + 1
        is_matrix = view.ndim == 2
        assert (start + view.size <= params.n_matrix_elements) if is_matrix else (start >= params.n_matrix_elements)
    np.testing.assert_array_equal(params.flat, owner + 1)


@pytest.mark.parametrize("architecture", [GPT_2, LLAMA], ids=["gpt2", "llama"])
def test_gaps_stay_zero(backend, architecture):
    """Gaps are zero after five AdamW steps with weight decay and clipping.

    Norms, hashes and checkpoints read the whole buffer, so a value in a gap would
    count.
    """
    config = small_config(n_embd=12, vocab_size=7, **architecture)
    model = GPT(config, backend=backend)
    optimizer = AdamW(model, lr=0.01, weight_decay=0.1)
    for step in range(5):
        model.loss_and_grad(*random_batch(config, B=2, T=5, seed=step))
        optimizer.step(grad_clip=0.1)
    is_gap = np.ones(len(model.params.flat), bool)
    for name, view in model.params.items():
        start = model.params.offsets[name]
        is_gap[start : start + view.size] = False
    assert np.count_nonzero(is_gap) > 0
    for flat in (model.params.flat, model.grads.flat, *optimizer.state.values()):
        assert not flat[is_gap].any()


def test_parameters_are_a_mapping():
    params = Parameters({"blocks.1.w": (2, 2), "blocks.10.w": (3,), "head": (1, 2)}, "float64")
    assert list(params) == ["blocks.1.w", "blocks.10.w", "head"]
    assert len(params) == 3
    assert "head" in params
    assert params.get("absent") is None
    with pytest.raises(KeyError):
        params["absent"]
    assert list(within(params, "blocks.1")) == ["w"]
    within(params, "blocks.1")["w"][0, 1] = 5.0
    assert params["blocks.1.w"][0, 1] == params.flat[params.offsets["blocks.1.w"] + 1] == 5.0


def test_gradients_mirror_the_parameters(backend):
    model = GPT(small_config(), backend=backend)
    assert model.grads.offsets == model.params.offsets
    assert model.grads.shapes == model.params.shapes
    assert not np.shares_memory(model.grads.flat, model.params.flat)
