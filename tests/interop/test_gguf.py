"""GGUF files against hand-written fields, names, shapes and orders of weights."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from model.model_cases import GPT_2, LLAMA, QWEN, set_weights_of_order_one
from small_runs import refused, run

import npllm
from npllm.data.prompt_format import CHAT_TOKENS
from npllm.errors import ConfigError
from npllm.interop import gguf
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import Tokenizer, byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.special_tokens import with_special_tokens

library = pytest.importorskip("gguf")

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 12}
IN_BLOCKS = QWEN | {"head_dim": 16, "n_inner": 96}  # widths that q8_0 can hold
BYTES = byte_tokenizer()
V = BYTES.vocab_size
CHAT = with_special_tokens(BYTES, CHAT_TOKENS)
# Hand-merged: "ab", then "abab"; the pieces are "abab" and " abab".
TRAINED = train_bpe(["abab abab"], 256 + 2 + 1)
OF_A_LLAMA_BLOCK = {
    "attn_norm.weight": (32,), "attn_q.weight": (32, 32), "attn_k.weight": (16, 32), "attn_v.weight": (16, 32),
    "attn_output.weight": (32, 32), "ffn_norm.weight": (32,), "ffn_gate.weight": (96, 32), "ffn_up.weight": (96, 32),
    "ffn_down.weight": (32, 96),
}  # fmt: skip
OF_A_GPT2_BLOCK = {
    "attn_norm.weight": (32,), "attn_norm.bias": (32,), "attn_qkv.weight": (96, 32), "attn_qkv.bias": (96,),
    "attn_output.weight": (32, 32), "attn_output.bias": (32,), "ffn_norm.weight": (32,), "ffn_norm.bias": (32,),
    "ffn_up.weight": (128, 32), "ffn_up.bias": (128,), "ffn_down.weight": (32, 128), "ffn_down.bias": (32,),
}  # fmt: skip


def small_model(seed=1, tokenizer=BYTES, **fields):
    model = GPT(ModelConfig(**(SIZES | fields), vocab_size=tokenizer.vocab_size), backend="reference")
    set_weights_of_order_one(model, seed)
    return model


def written(folder, model, tokenizer=BYTES, outtype="f32"):
    """The reader of the file that `save` writes."""
    gguf.save(model, tokenizer, folder / "out", outtype)
    return library.GGUFReader(folder / "out" / f"model-{outtype}.gguf")


def fields_of(reader):
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def tensors_of(reader):
    return {tensor.name: tensor.data for tensor in reader.tensors}


def blocks(names):
    return {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in names.items()}


def test_the_fields_of_a_network(tmp_path):
    fields = fields_of(written(tmp_path, small_model(**IN_BLOCKS | {"n_kv_head": 2}), outtype="q8_0"))
    of_tokenizer = [name for name in fields if name.startswith("tokenizer.")]
    assert {name: value for name, value in fields.items() if name not in of_tokenizer} == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "qwen3.vocab_size": V,
        "qwen3.context_length": 12,
        "qwen3.embedding_length": 32,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-2),
        "qwen3.rope.dimension_count": 16,
        "qwen3.rope.freq_base": 50.0,
    }


def test_the_fields_of_gpt2(tmp_path):
    fields = fields_of(written(tmp_path, small_model(**GPT_2)))
    assert fields["general.file_type"] == 0
    assert fields["gpt2.feed_forward_length"] == 128
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert not [name for name in fields if "rope" in name or "rms" in name]


def test_the_fields_of_a_tokenizer(tmp_path):
    fields = fields_of(written(tmp_path, small_model(tokenizer=TRAINED, **QWEN), TRAINED))
    tokens = fields.pop("tokenizer.ggml.tokens")
    types = fields.pop("tokenizer.ggml.token_type")
    assert tokens[:2] + tokens[255:] == ["!", '"', "\u0143", "ab", "abab", "<|endoftext|>"]
    assert tokens[220] == "\u0120"  # the space
    assert types == [1] * 258 + [3]
    assert {name: value for name, value in fields.items() if name.startswith("tokenizer.")} == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b", "ab ab"],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.eot_token_id": 258,
        "tokenizer.ggml.padding_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_a_conversation_ends_with_its_own_token(tmp_path):
    fields = fields_of(written(tmp_path, small_model(tokenizer=CHAT, **QWEN), CHAT))
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.tokens"].index("<|endoftext|>")
    for name in ("eos", "eot"):
        assert fields[f"tokenizer.ggml.{name}_token_id"] == fields["tokenizer.ggml.tokens"].index("<|end|>")
    assert fields["tokenizer.ggml.token_type"][-6:] == [1, 3, 3, 3, 3, 3]
    assert "'<|' + message['role'] + '|>' + message['content'] + '<|end|>'" in fields["tokenizer.chat_template"]
    assert (tmp_path / "out" / "Modelfile").read_text() == (
        "FROM ./model-f32.gguf\n"
        "PARAMETER num_ctx 12\n"
        'PARAMETER stop "<|user|>"\n'
        'PARAMETER stop "<|assistant|>"\n'
        'PARAMETER stop "<|system|>"\n'
        'PARAMETER stop "<|end|>"\n'
        'TEMPLATE """{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"""\n'
    )


def test_the_modelfile_of_a_model_that_continues_texts(tmp_path):
    assert "tokenizer.chat_template" not in fields_of(written(tmp_path, small_model(**QWEN), outtype="f16"))
    assert (tmp_path / "out" / "Modelfile").read_text() == (
        'FROM ./model-f16.gguf\nPARAMETER num_ctx 12\nTEMPLATE """{{ .Prompt }}"""\n'
    )


@pytest.mark.parametrize(
    ("split", "ignore_merges", "name"),
    [("gpt2", True, "gpt-2"), ("gpt2", False, "gpt-2"), ("cl100k", True, "llama-bpe"), ("llama3", False, "dbrx")],
)
def test_the_name_of_a_split(tmp_path, split, ignore_merges, name):
    """A trained tokenizer has the same ids with and without a look-up of whole pieces;
    llama.cpp's llama-bpe looks up, and dbrx does not."""
    vocabulary = train_bpe(["abab abab"], 259, split=split).vocabulary
    tokenizer = Tokenizer(replace(vocabulary, ignore_merges=ignore_merges))
    fields = fields_of(written(tmp_path, small_model(tokenizer=tokenizer, **QWEN), tokenizer))
    assert fields["tokenizer.ggml.pre"] == name
    assert fields["tokenizer.ggml.add_bos_token"] is False  # llama-bpe alone would add one


def test_a_tokenizer_without_merges_gets_one_that_never_applies(tmp_path):
    assert fields_of(written(tmp_path, small_model(**QWEN)))["tokenizer.ggml.merges"] == ["<|endoftext|> <|endoftext|>"]


def test_the_tensors_of_the_families(tmp_path):
    def shapes(name, **fields):
        return {name: data.shape for name, data in tensors_of(written(tmp_path / name, small_model(**fields))).items()}

    shared = {"token_embd.weight": (V, 32), "output_norm.weight": (32,)}
    llama, head = LLAMA | {"n_kv_head": 2}, {"output.weight": (V, 32)}
    assert shapes("llama", **llama) == shared | head | blocks(OF_A_LLAMA_BLOCK)
    assert shapes("tied", **llama | {"tie_embeddings": True}) == shared | blocks(OF_A_LLAMA_BLOCK)
    norms = {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}
    assert shapes("qwen3", **llama | {"qk_norm": True}) == shared | head | blocks(OF_A_LLAMA_BLOCK | norms)
    biases = {f"{name}.bias": shape[:1] for name, shape in (
        (name.removesuffix(".weight"), shape) for name, shape in OF_A_LLAMA_BLOCK.items() if "norm" not in name
    )}  # fmt: skip
    assert shapes("biases", **llama | {"bias": True}) == shared | head | blocks(OF_A_LLAMA_BLOCK | biases)
    own = {"position_embd.weight": (12, 32), "output_norm.bias": (32,)}  # and a head, though it is tied
    assert shapes("gpt2", **GPT_2) == shared | own | head | blocks(OF_A_GPT2_BLOCK)


def test_rows_of_queries_and_keys_follow_llamas_rotation(tmp_path):
    """Rows 2i and 2i + 1 of a Llama head were i and i + 4; those of Qwen3 stay."""
    order, qwen = [0, 4, 1, 5, 2, 6, 3, 7], QWEN | {"head_dim": None}
    for name, fields, rows in (("llama", LLAMA | {"bias": True}, order), ("qwen3", qwen, list(range(8)))):
        model = small_model(**fields | {"n_kv_head": 2})
        packed, found = model.params["blocks.1.attention.qkv.weight"], tensors_of(written(tmp_path / name, model))
        for part, first, n_heads in (("q", 0, 4), ("k", 32, 2)):
            columns = [first + 8 * head + row for head in range(n_heads) for row in rows]
            np.testing.assert_array_equal(found[f"blk.1.attn_{part}.weight"], packed[:, columns].T)
            if model.config.bias:
                bias = model.params["blocks.1.attention.qkv.bias"]
                np.testing.assert_array_equal(found[f"blk.1.attn_{part}.bias"], bias[columns])
        np.testing.assert_array_equal(found["blk.1.attn_v.weight"], packed[:, 48:].T)
        np.testing.assert_array_equal(found["blk.0.ffn_down.weight"], model.params["blocks.0.mlp.down.weight"].T)
        np.testing.assert_array_equal(found["output.weight"], model.params["lm_head"])


def test_matrices_of_gpt2_are_transposed(tmp_path):
    model = small_model(**GPT_2)
    found, params = tensors_of(written(tmp_path, model)), model.params
    np.testing.assert_array_equal(found["blk.0.attn_qkv.weight"], params["blocks.0.attention.qkv.weight"].T)
    np.testing.assert_array_equal(found["blk.1.ffn_up.weight"], params["blocks.1.mlp.up.weight"].T)
    np.testing.assert_array_equal(found["blk.1.ffn_up.bias"], params["blocks.1.mlp.up.bias"])
    for name, ours in (("token_embd", "token_embedding"), ("position_embd", "position_embedding")):
        np.testing.assert_array_equal(found[f"{name}.weight"], params[ours])
    np.testing.assert_array_equal(found["output.weight"], params["token_embedding"])


def test_half_precision(tmp_path):
    model = small_model(**GPT_2)
    reader = written(tmp_path, model, outtype="f16")
    assert fields_of(reader)["general.file_type"] == 1
    found = tensors_of(reader)
    np.testing.assert_array_equal(
        found["blk.0.ffn_down.weight"], model.params["blocks.0.mlp.down.weight"].T.astype(np.float16)
    )
    plain = {name for name, data in found.items() if data.dtype == np.float32}
    assert plain == {name for name, data in found.items() if data.ndim == 1} | {"position_embd.weight"}


def test_blocks_of_eight_bits(tmp_path):
    """A block is a float16 scale, the largest magnitude / 127, and 32 signed bytes."""
    model = small_model(**LLAMA)
    (tensor,) = (t for t in written(tmp_path, model, outtype="q8_0").tensors if t.name == "blk.1.ffn_down.weight")
    assert tensor.tensor_type.name == "Q8_0"
    stored = tensor.data.reshape(-1, 34)
    scales, signed = stored[:, :2].copy().view(np.float16).astype(np.float32), stored[:, 2:].view(np.int8)
    values = model.params["blocks.1.mlp.down.weight"].T.reshape(-1, 32)
    largest = np.abs(values).max(axis=1, keepdims=True)
    np.testing.assert_allclose(scales, largest / 127, rtol=2**-11)
    assert np.abs(values - scales * signed).max() <= (0.5 / 127 + 2**-11) * largest.max()


def test_lora_is_merged(tmp_path):
    model = small_model(lora_rank=2, **LLAMA)
    for name in ("lora_a", "lora_b"):
        assert np.any(model.params[f"blocks.0.mlp.up.weight.{name}"])
    found = tensors_of(written(tmp_path, model))
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], model.merged()["blocks.0.mlp.up.weight"].T)


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_one_tensor_at_a_time_is_converted(tmp_path, outtype):
    """The largest of many tensors is 0.25 MB; the model has 6 MB."""
    model = small_model(n_layer=8, n_embd=128, **LLAMA)
    sizes = [array.nbytes for array in model.params.values()]
    tracemalloc.start()
    gguf.save(model, BYTES, tmp_path / "out", outtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) > 20 * max(sizes)
    assert peak < 6 * max(sizes)


def without_end(tokenizer):
    """A tokenizer whose only special token is no end of text."""
    vocabulary = tokenizer.vocabulary
    return Tokenizer(replace(vocabulary, tokens=(*vocabulary.tokens[:-1], b"<s>"), special_tokens={"<s>": V - 1}))


def with_pattern(pattern):
    return Tokenizer(replace(BYTES.vocabulary, split_pattern=pattern))


def with_an_unmade_token():
    """A tokenizer that finds "xyz" only as a whole piece."""
    tokens = (*BYTES.vocabulary.tokens[:-1], b"xyz", b"<|endoftext|>")
    special = {"<|endoftext|>": 257}
    return Tokenizer(replace(BYTES.vocabulary, tokens=tokens, special_tokens=special, ignore_merges=True))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (train_char(["abc"]), "llama.cpp has no tokenizers of whole characters"),
        (without_end(BYTES), "needs a token that ends a text"),
        (with_pattern(r"\p{L}+|\P{L}+"), "does not have the split of this tokenizer"),
        (with_an_unmade_token(), "finds tokens only by merges"),
    ],
    ids=["characters", "no end", "another split", "tokens without merges"],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        gguf.save(small_model(tokenizer=tokenizer, **QWEN), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "outtype", "message"),
    [
        (GPT_2 | {"mlp": "relu2"}, "f32", "needs model.mlp = gelu"),
        (QWEN | {"n_embd": 16}, "q8_0", "q8_0 has blocks of 32 numbers, but the rows of .* have 16; choose f16"),
        (QWEN | {"n_layer": 3}, "f32", "llama.cpp has at most 2 layers"),
        (QWEN, "q4_0", "choose one of f32, f16, q8_0"),
    ],
)
def test_a_network_that_llama_cpp_lacks_is_refused(tmp_path, monkeypatch, fields, outtype, message):
    monkeypatch.setattr(gguf, "MOST_LAYERS", 2)
    with pytest.raises(ConfigError, match=message):
        gguf.save(small_model(**fields), BYTES, tmp_path / "out", outtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("outtype", "value"), [("f16", -7e4), ("q8_0", 9e6), ("f16", np.nan)])
def test_values_that_a_type_cannot_hold_are_refused(tmp_path, outtype, value):
    model = small_model(**IN_BLOCKS)
    model.params["blocks.1.mlp.up.weight"][3, 5] = value
    with pytest.raises(ConfigError, match=f"{outtype} cannot hold the largest values of blk.1.ffn_up.weight"):
        gguf.save(model, BYTES, tmp_path / "out", outtype)
    gguf.save(model, BYTES, tmp_path / "out", "f32")


def test_a_run_becomes_a_file(tmp_path, capsys):
    """On the command line."""
    made, out = tmp_path / "run", tmp_path / "gguf"
    npllm.save(small_model(**IN_BLOCKS), BYTES, made)
    assert run("export", made, "--out", out, "--format", "gguf", "--outtype", "q8_0") == 0
    assert "llama.cpp loads model-q8_0.gguf" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model-q8_0.gguf"]
    assert "is not empty" in refused(capsys, "export", made, "--out", out, "--format", "gguf", exit_code=2)
    message = refused(capsys, "export", made, "--out", tmp_path / "hf", "--outtype", "f16", exit_code=2)
    assert "--outtype f16 is for --format gguf" in message
