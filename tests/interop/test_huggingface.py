"""Folders of Hugging Face: names, layouts and files against hand-written ones."""

import json
import shutil

import numpy as np
import pytest
from interop.small_models import FAMILIES, small_model
from model.model_cases import GPT_2, LLAMA, QWEN, RELU2
from small_runs import content, pretrain_arguments, refused, run, write_text

import npllm
from npllm.errors import ConfigError, DataError
from npllm.interop import huggingface
from npllm.tokenizer import byte_tokenizer
from npllm.tokenizer.special_tokens import with_special_tokens

safetensors = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

JSON_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
OF_A_LLAMA_BLOCK = {
    "input_layernorm.weight": (16,),
    "self_attn.q_proj.weight": (16, 16),
    "self_attn.k_proj.weight": (8, 16),
    "self_attn.v_proj.weight": (8, 16),
    "self_attn.o_proj.weight": (16, 16),
    "post_attention_layernorm.weight": (16,),
    "mlp.gate_proj.weight": (64, 16),
    "mlp.up_proj.weight": (64, 16),
    "mlp.down_proj.weight": (16, 64),
}
OF_A_GPT2_BLOCK = {
    "ln_1.weight": (16,), "ln_1.bias": (16,), "attn.c_attn.weight": (16, 48), "attn.c_attn.bias": (48,),
    "attn.c_proj.weight": (16, 16), "attn.c_proj.bias": (16,), "ln_2.weight": (16,), "ln_2.bias": (16,),
    "mlp.c_fc.weight": (16, 64), "mlp.c_fc.bias": (64,), "mlp.c_proj.weight": (64, 16), "mlp.c_proj.bias": (16,),
}  # fmt: skip


def shapes_of(**fields):
    model = small_model(**fields)
    return {name: array.shape for name, array in huggingface.to_state_dict(model.config, model.params).items()}


@pytest.fixture
def folder(tmp_path):
    """An exported Llama. It may be changed."""
    huggingface.save(small_model(**FAMILIES["llama tied"]), byte_tokenizer(), tmp_path / "llama")
    return tmp_path / "llama"


def test_the_tensors_of_the_families():
    V = byte_tokenizer().vocab_size
    assert shapes_of(**FAMILIES["gpt2"]) == {
        "transformer.wte.weight": (V, 16),
        "transformer.wpe.weight": (12, 16),
        "transformer.ln_f.weight": (16,),
        "transformer.ln_f.bias": (16,),
        **{f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in OF_A_GPT2_BLOCK.items()},
    }
    tied = FAMILIES["llama tied"]
    of_blocks = {
        f"model.layers.{layer}.{name}": OF_A_LLAMA_BLOCK[name] for layer in range(2) for name in OF_A_LLAMA_BLOCK
    }
    assert shapes_of(**tied) == {"model.embed_tokens.weight": (V, 16), "model.norm.weight": (16,), **of_blocks}
    assert shapes_of(**tied | {"tie_embeddings": False}).keys() - shapes_of(**tied).keys() == {"lm_head.weight"}
    norms = {f"model.layers.{layer}.self_attn.{name}_norm.weight" for layer in range(2) for name in "qk"}
    assert shapes_of(**tied | {"qk_norm": True}).keys() - shapes_of(**tied).keys() == norms
    more = shapes_of(**tied | {"bias": True})
    assert more["model.layers.1.self_attn.k_proj.bias"] == (8,)
    assert more["model.layers.1.mlp.gate_proj.bias"] == (64,)


def test_weights_of_linear_layers_lie_as_transformers_wants_them():
    """Rows are outputs; keys stand behind all queries, and values behind the keys."""
    model = small_model(**FAMILIES["llama tied"])
    qkv, down = model.params["blocks.1.attention.qkv.weight"], model.params["blocks.1.mlp.down.weight"]
    found = huggingface.to_state_dict(model.config, model.params)
    for name, first in {"q": 0, "k": 16, "v": 24}.items():
        assert found[f"model.layers.1.self_attn.{name}_proj.weight"][5, 3] == qkv[3, first + 5]
    assert found["model.layers.1.mlp.down_proj.weight"][5, 33] == down[33, 5]
    gpt2 = small_model(**GPT_2)
    found = huggingface.to_state_dict(gpt2.config, gpt2.params)
    assert found["transformer.h.1.attn.c_attn.weight"][3, 21] == gpt2.params["blocks.1.attention.qkv.weight"][3, 21]


def test_gradients_have_the_same_names():
    model = small_model(**QWEN)
    model.grads.flat[:] = np.arange(len(model.grads.flat))
    found = huggingface.to_state_dict(model.config, model.grads)
    assert np.shares_memory(found["model.layers.0.self_attn.v_proj.weight"], model.grads.flat)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_changes_nothing(tmp_path, family):
    """The model is the same to the bit, and what it writes again the same file."""
    model, tokenizer = small_model(**FAMILIES[family]), byte_tokenizer()
    huggingface.save(model, tokenizer, tmp_path / "one")
    again, of_folder = npllm.load(tmp_path / "one")
    assert again.config == model.config
    assert of_folder.sha256() == tokenizer.sha256()
    np.testing.assert_array_equal(again.params.flat, model.params.flat)
    huggingface.save(again, of_folder, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize("family", FAMILIES)
def test_import_export_and_import_again_write_the_same_bytes(tmp_path, capsys, family):
    """On the command line, by way of a folder of ours: both sides twice."""
    huggingface.save(small_model(**FAMILIES[family]), byte_tokenizer(), tmp_path / "theirs")
    assert run("import", tmp_path / "theirs", "--out", tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", "--out", tmp_path / "theirs again") == 0
    assert run("import", tmp_path / "theirs again", "--out", tmp_path / "ours again") == 0
    assert content(tmp_path / "theirs again") == content(tmp_path / "theirs")
    assert content(tmp_path / "ours again") == content(tmp_path / "ours")


def test_the_json_files_of_a_qwen3(tmp_path):
    tokenizer = with_special_tokens(
        byte_tokenizer(), ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    )
    huggingface.save(small_model(tokenizer=tokenizer, **QWEN), tokenizer, tmp_path)
    read = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    eot, end = tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"]
    assert read["config.json"] == {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": False, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "hidden_size": 16, "head_dim": 6, "intermediate_size": 20, "max_position_embeddings": 12, "hidden_act": "silu",
        "rms_norm_eps": 0.01, "rope_theta": 50.0,
        "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}, "attention_bias": False,
        "attention_dropout": 0.0, "dtype": "float32", "bos_token_id": eot, "eos_token_id": end, "pad_token_id": eot,
    }  # fmt: skip
    assert read["generation_config.json"]["eos_token_id"] == end
    assert read["tokenizer_config.json"] == {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 12,
        "bos_token": "<|endoftext|>", "eos_token": "<|end|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    template = (tmp_path / "chat_template.jinja").read_text()
    assert "'<|' + message['role'] + '|>' + message['content'] + '<|end|>'" in template


def test_lora_is_merged(tmp_path):
    model = small_model(**LLAMA, lora_rank=2)
    tokens = np.arange(20).reshape(2, 10)
    huggingface.save(model, byte_tokenizer(), tmp_path / "out")
    merged, _ = huggingface.load(tmp_path / "out")
    assert merged.config.lora_rank == 0
    np.testing.assert_allclose(merged.logits(tokens), model.logits(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_halves_are_read_exactly(folder, dtype):
    file = folder / "model.safetensors"
    tensors = {name: array.astype(dtype) for name, array in safetensors.load_file(file).items()}
    safetensors.save_file(tensors, file)
    model, _ = huggingface.load(folder)
    expected = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.params["blocks.1.mlp.up.weight"], expected.T)


def test_shards_and_the_other_names_of_gpt2(tmp_path):
    """Files without the prefix, with masks as tensors, and with a tied head that is
    written twice."""
    model = small_model(**GPT_2)
    huggingface.save(model, byte_tokenizer(), tmp_path / "gpt2")
    folder = tmp_path / "gpt2"
    tensors = {
        name.removeprefix("transformer."): array
        for name, array in safetensors.load_file(folder / "model.safetensors").items()
    }
    tensors |= {"h.0.attn.bias": np.ones((1, 1, 12, 12), np.float32), "lm_head.weight": tensors["wte.weight"].copy()}
    (folder / "model.safetensors").unlink()
    table = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for part in set(table.values()):
        safetensors.save_file({name: tensors[name] for name in tensors if table[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    np.testing.assert_array_equal(huggingface.load(folder)[0].params.flat, model.params.flat)


def change_config(folder, fields):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in (config | fields).items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "the model_type 'mamba'; give a folder of gpt2, llama, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' (needs 'silu')"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = {'rope_theta': 10000.0, 'rope_type': 'yarn'}"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling = {'factor': 2}"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types = ['full_attention', 'sliding_attention']",
        ),
        ({"mlp_bias": True}, "mlp_bias = True (needs False)"),
        ({"head_dim": 8}, "is (16, 16) of F32, but (32, 16)"),
        ({"head_dim": 3}, "the head width model.head_dim is 3, which is odd"),
        ({"rms_norm_eps": "1e-6"}, "gives no number for norm_eps ('1e-6')"),
        ({"rms_norm_eps": 0}, "model.norm_eps is 0.0; set it above 0"),
        ({"rope_theta": None, "rope_parameters": None}, "gives no number for rope_theta (None)"),
        ({"rope_theta": 5e5}, "rope_theta = 500000.0 (needs 10000.0)"),
        ({"hidden_size": "16"}, "gives no whole number for hidden_size ('16')"),
        ({"num_hidden_layers": 2**63}, "describes no network of this package: model.n_layer"),
        ({"num_hidden_layers": 3}, "are missing"),
        ({"num_hidden_layers": 1}, "are unexpected"),
        ({"vocab_size": 300}, "a tokenizer of 257 tokens and a model of 300"),
        ({"max_position_embeddings": None}, "gives no whole number for max_position_embeddings (None)"),
    ],
)
def test_another_network_is_refused_by_name(folder, fields, message):
    change_config(folder, fields)
    with pytest.raises(DataError) as error:
        huggingface.load(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu' (needs 'gelu_new')"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function = 'gelu' (needs 'gelu_new')"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads = {'0': [1]}"),
        ("llama", {"attention_bias": True}, "mlp_bias = False (needs True)"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp = 2"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor': 0.5"),
        ("llama", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map = {'AutoModel': 'code.Model'}"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True (needs False)"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types = ['full_attention']"),
    ],
)
def test_what_no_network_of_ours_does_is_refused_by_name(tmp_path, family, fields, message):
    huggingface.save(small_model(**FAMILIES[family]), byte_tokenizer(), tmp_path / family)
    change_config(tmp_path / family, fields)
    with pytest.raises(DataError) as error:
        huggingface.load(tmp_path / family)
    assert message in str(error.value)


def test_all_missing_and_unexpected_tensors_are_named_at_once(folder):
    changed(model__norm__weight=None, x=np.zeros(2))(folder)
    with pytest.raises(DataError, match=r"tensors model.norm.weight are missing and the tensors x are unexpected; get"):
        huggingface.load(folder)


def changed(**tensors):
    """Harm that replaces or adds tensors; a None removes one. __ stands for a point."""
    new = {name.replace("__", "."): array for name, array in tensors.items()}

    def harm(folder):
        file = folder / "model.safetensors"
        found = safetensors.load_file(file) | new
        safetensors.save_file({name: array for name, array in found.items() if array is not None}, file)

    return harm


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


HARMS = {
    "missing": (changed(model__norm__weight=None), "the tensors model.norm.weight are missing"),
    "unexpected": (changed(x=np.zeros(2)), "the tensors x are unexpected"),
    "shape": (changed(model__norm__weight=np.ones((1, 16), np.float32)), "is (1, 16) of F32, but (16,)"),
    "dtype": (changed(model__norm__weight=np.ones(16, np.int64)), "is (16,) of I64"),
    "infinity": (changed(model__norm__weight=np.full(16, np.inf, np.float32)), "holds weights that are not finite"),
    "head": (changed(lm_head__weight=np.ones((257, 16), np.float32)), "but its lm_head differs"),
    "cut off": (cut, "model.safetensors cannot be read"),
    "outside": (
        written("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}'),
        "names the file '../b.safetensors' outside of its folder",
    ),
    "no files": (written("model.safetensors.index.json", '{"weight_map": {}}'), "names no files"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has neither tokenizer.json nor"),
    "no JSON": (written("config.json", "{"), "is not valid JSON"),
    "a list": (written("config.json", "[]"), "holds no JSON object"),
}


@pytest.mark.parametrize(("harm", "message"), HARMS.values(), ids=HARMS)
def test_damaged_folders_are_refused_by_name(folder, harm, message):
    harm(folder)
    with pytest.raises(DataError) as error:
        huggingface.load(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (RELU2, "the nearest is gpt2, which needs model.mlp = gelu"),
        (GPT_2 | {"n_kv_head": 2}, "the nearest is gpt2, which needs model.kv_heads = 4"),
        (QWEN | {"bias": True}, "the nearest is"),
        (GPT_2 | {"n_outputs": 3}, "has a second head"),
    ],
)
def test_a_network_that_no_family_holds_is_not_exported(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        huggingface.save(small_model(**fields), byte_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verbs_that_need_a_run_say_how_to_make_one(folder, tmp_path, capsys):
    data = write_text(tmp_path)
    for words in (("evaluate", folder), ("evaluate", folder, "--data", data), ("sft", folder), ("chat", folder),
                  ("classify", folder, "--data", "stdlib-topics"), ("pretrain", "--from", folder)):  # fmt: skip
        said = refused(capsys, *words, exit_code=3)
        assert f"is a folder of Hugging Face; make a model of it first (npllm import {folder} --out RUN)" in said


@pytest.mark.usefixtures("quick")
def test_a_run_goes_out_and_comes_back(tmp_path, capsys):
    """On the command line, into a folder that later verbs take."""
    made, out, back = tmp_path / "run", tmp_path / "hf", tmp_path / "back"
    assert run(*pretrain_arguments(write_text(tmp_path), made, data__tokenizer="byte")) == 0
    assert run("export", made, "--out", out) == 0
    assert "is not empty; choose another folder." in refused(capsys, "export", made, "--out", out, exit_code=2)
    assert run("import", out, "--out", back) == 0
    assert f"Next: npllm generate {back}" in capsys.readouterr().out
    texts = []
    for folder in (made, out, back):
        assert run("generate", folder, "--max_tokens", 8) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    shutil.rmtree(out)
    assert "config.json" in refused(capsys, "import", out, "--out", tmp_path / "other", exit_code=3)
