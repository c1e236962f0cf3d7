"""ModelConfig: values that are refused, and the numbers that follow from a shape."""

import pytest
from model_cases import small_config

from npllm.errors import ConfigError
from npllm.model import GPT, ModelConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 0}, "model.n_layer is 0"),
        ({"n_head": 0}, "model.n_head is 0"),
        ({"n_embd": -8}, "model.n_embd is -8"),
        ({"block_size": 0}, "model.block_size is 0"),
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        ({"n_embd": 10, "n_head": 4}, "model.n_embd = 10 .* model.n_head = 4"),
        ({"n_head": 4, "n_kv_head": 3}, r"model.n_kv_head = 3 .* model.n_head = 4; choose a divisor, such as 1"),
        ({"n_head": 4, "n_kv_head": 8}, "model.n_kv_head = 8"),
        ({"n_head": 4, "n_kv_head": 0}, "model.n_kv_head = 0"),
        ({"n_embd": 6, "position": "rotary"}, "model.position = 'rotary' .* is 3"),
        ({"head_dim": 3, "position": "rotary"}, "model.head_dim is 3, which is odd; set model.head_dim to 4"),
        ({"head_dim": 0}, "model.head_dim is 0; set it from 1 to 1048576"),
        ({"n_inner": 1 << 21}, "model.n_inner is 2097152"),
        ({"norm_eps": 0.0}, "model.norm_eps is 0.0; set it above 0"),
        ({"norm_eps": float("nan")}, "model.norm_eps is nan"),
        ({"rope_theta": 1.0}, "model.rope_theta is 1.0; set it above 1"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"dropout": -0.1}, "model.dropout is -0.1"),
        ({"dropout": float("nan")}, "model.dropout is nan"),
        ({"norm": "batchnorm"}, "model.norm is 'batchnorm'; choose one of layernorm, rmsnorm"),
        ({"position": "alibi"}, "model.position is 'alibi'"),
        ({"mlp": "relu"}, "model.mlp is 'relu'"),
        ({"lora_rank": 1, "lora_new_tokens": -1}, "model.lora_new_tokens is -1; set it from 0 to"),
        ({"lora_rank": 1, "lora_new_tokens": 12}, "model.lora_new_tokens is 12"),
        ({"lora_new_tokens": 1}, "model.lora_new_tokens is 1; .* and to 0 without model.lora_rank"),
    ],
)
def test_bad_value_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**fields)


@pytest.mark.parametrize(
    ("n_embd", "mlp", "width"),
    [
        (128, "gelu", 512),
        (128, "relu2", 512),
        (128, "swiglu", 352),
        (96, "swiglu", 256),
        (768, "swiglu", 2048),
        (8, "swiglu", 32),
    ],
)
def test_mlp_width(n_embd, mlp, width):
    assert small_config(n_embd=n_embd, mlp=mlp).mlp_width == width
    assert small_config(n_embd=n_embd, mlp=mlp, n_inner=20).mlp_width == 20


def test_heads_need_not_divide_the_width():
    """Qwen3-0.6B has a width of 1024 and 16 query heads of 128."""
    assert small_config(n_embd=1024, n_head=16).head_width == 64
    assert small_config(n_embd=1024, n_head=16, head_dim=128).head_width == 128
    assert small_config(n_embd=10, n_head=4, head_dim=5).head_width == 5


def test_a_model_is_shown_in_one_line():
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 128, "vocab_size": 2048}
    llama = ModelConfig(**shape, norm="rmsnorm", position="rotary", mlp="swiglu", bias=False)
    assert repr(GPT(llama)) == (
        "GPT(3 layers, width 128, 4 heads, block 128, vocabulary 2,048, rotary, rmsnorm, swiglu; "
        "0.87 M parameters, float32)"
    )
    other = small_config(n_layer=1, n_head=4, n_kv_head=2, n_embd=16, qk_norm=True, n_outputs=3, lora_rank=2)
    assert repr(GPT(other, dtype="float64")) == (
        "GPT(1 layer, width 16, 4 heads, 2 for keys and values, block 6, vocabulary 11, learned, layernorm, gelu, "
        "qk_norm, 3 outputs, LoRA of rank 2; 3,320 parameters, float64)"
    )
    assert "2 heads of 6, block" in repr(GPT(small_config(head_dim=6, n_inner=20)))
    assert "gelu, MLP of 20;" in repr(GPT(small_config(head_dim=6, n_inner=20)))


def test_flops_per_token_of_gpt_2():
    """FLOPs for L = 2, C = 8, F = 32, V = 11 and length 6, counted by hand.

    The matrices of a block have 768 weights: qkv 8x24, out 8x8, and two of 8x32 in the
    MLP. The head has 11x8 = 88. In each of the 2 layers a position attends to 3 keys on
    average; each key costs a dot product of 8 and a weighted sum of 8. Each of these is
    a multiply and an add, once in the forward and twice in the backward.
    """
    expected = 6 * (2 * 768 + 88) + 2 * 3 * (8 + 8) * 2 * 3
    assert small_config().flops_per_token(6) == expected == 10320
    assert small_config(tie_embeddings=False).flops_per_token(6) == expected
    assert small_config(mlp="relu2").flops_per_token(6) == expected
    assert small_config(qk_norm=True).flops_per_token(6) == expected  # it multiplies no matrix


def test_flops_per_token_of_llama():
    """Grouped heads and SwiGLU, counted by hand.

    qkv is 8x16: two query heads, one key head and one value head of width 4. The MLP
    has three matrices of 8x32.
    """
    config = small_config(n_layer=1, n_kv_head=1, mlp="swiglu", position="rotary")
    assert config.flops_per_token(4) == 6 * (128 + 64 + 3 * 256 + 88) + 6 * 8 * 4 == 6480
    wider = small_config(n_layer=1, n_kv_head=1, mlp="swiglu", position="rotary", head_dim=6, n_inner=20)
    assert wider.flops_per_token(4) == 6 * (8 * 24 + 12 * 8 + 3 * 160 + 88) + 6 * 12 * 4
