"""LoRA as a folder of PEFT: base and factors together are the merged model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from interop.small_models import FAMILIES, small_model
from model.model_cases import LLAMA
from small_runs import refused, run
from stage_runs import pretrained, stage_arguments, write_jsonl

from npllm.errors import ConfigError
from npllm.interop import huggingface, peft
from npllm.model import GPT
from npllm.tokenizer import byte_tokenizer

safetensors = pytest.importorskip("safetensors.numpy")
pytest.importorskip("ml_dtypes")

RANK, NEW = 2, 3


def model_with_factors(**fields) -> GPT:
    """A model whose frozen weights, factors and new rows are all of order one."""
    plain = small_model(**fields)
    model = GPT(replace(plain.config, lora_rank=RANK, lora_alpha=5.0, lora_new_tokens=NEW))
    model.frozen.flat[:] = plain.params.flat
    rng = np.random.default_rng(3)
    for array in model.params.values():
        array[...] = rng.standard_normal(array.shape)
    return model


def computed(folder) -> dict[str, np.ndarray]:
    """The weights that PEFT computes with, by what its documentation says."""
    fields = json.loads((folder / "adapter_config.json").read_text())
    weights = safetensors.load_file(folder / "base" / "model.safetensors")
    adapter = safetensors.load_file(folder / "adapter_model.safetensors")
    for name, array in adapter.items():
        layer = name.removeprefix("base_model.model.").rsplit(".", 2)[0]
        if name.endswith(".lora_A.weight"):
            assert layer.rpartition(".")[2] in fields["target_modules"]
            delta = adapter[name.replace("lora_A", "lora_B")] @ array * fields["lora_alpha"] / fields["r"]
            weights[f"{layer}.weight"] += delta.T if fields["fan_in_fan_out"] else delta
        elif name.endswith(".token_adapter.trainable_tokens_delta"):
            weights[f"{layer}.weight"][fields["trainable_token_indices"][layer.rpartition(".")[2]]] = array
    return weights


@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_factors_are_the_merged_model(tmp_path, family):
    """Queries, keys and values share A and have their own columns of B; rows of new
    tokens replace those of the base, of the head too where it is not tied."""
    model = model_with_factors(**FAMILIES[family])
    peft.save(model, byte_tokenizer(), tmp_path / "adapter")
    huggingface.save(model, byte_tokenizer(), tmp_path / "merged")
    merged = safetensors.load_file(tmp_path / "merged" / "model.safetensors")
    found = computed(tmp_path / "adapter")
    assert found.keys() == merged.keys()
    for name, array in merged.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    base, _ = huggingface.load(tmp_path / "adapter" / "base")
    np.testing.assert_array_equal(base.params.flat, model.frozen.flat)


def test_the_files_of_a_llama(tmp_path):
    peft.save(model_with_factors(**FAMILIES["llama tied"]), byte_tokenizer(), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 5.0, "fan_in_fan_out": False,
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "trainable_token_indices": {"embed_tokens": [254, 255, 256]}, "bias": "none", "inference_mode": True,
        "base_model_name_or_path": str(tmp_path / "adapter" / "base"),
    }  # fmt: skip
    adapter = safetensors.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model.model."): array.shape for name, array in adapter.items()}
    assert shapes["embed_tokens.token_adapter.trainable_tokens_delta"] == (NEW, 16)
    assert shapes["layers.1.self_attn.k_proj.lora_A.weight"] == (RANK, 16)
    assert shapes["layers.1.self_attn.k_proj.lora_B.weight"] == (8, RANK)
    assert len(shapes) == 2 * 7 * 2 + 1


def test_a_model_without_factors_has_no_adapter(tmp_path):
    with pytest.raises(ConfigError, match="no factors of LoRA; export it with --format hf"):
        peft.save(small_model(**LLAMA), byte_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_a_run_with_lora_goes_out(tmp_path, capsys):
    base, tuned = pretrained(tmp_path), tmp_path / "tuned"
    records = [{"prompt": "a cat", "response": "sat"}, {"prompt": "a dog", "response": "ran"}] * 4
    data = write_jsonl(tmp_path / "data.jsonl", records)
    assert run(*stage_arguments("sft", base, tuned, data=data, adapt__lora_rank=2)) == 0
    assert run("export", tuned, "--out", tmp_path / "adapter", "--format", "peft") == 0
    assert f"onto the model in {tmp_path / 'adapter' / 'base'}." in capsys.readouterr().out
    assert "no factors of LoRA" in refused(
        capsys, "export", base, "--out", tmp_path / "none", "--format", "peft", exit_code=2
    )
