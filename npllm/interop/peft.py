"""LoRA's factors as a folder of the library PEFT, beside the model that they change.

    adapter_config.json          rank, scale, and the names of the layers
    adapter_model.safetensors    two factors for each layer, and the rows of new tokens
    base/                        a folder of Hugging Face: the frozen weights

A factor of ours belongs to queries, keys and values together: $W = W_0 + s A B$ with
the three side by side in W. Where a family has a layer for each, they share A, and each
gets its columns of B. That is exact. PEFT computes with the transposed factors:
`lora_A` is $A^T$, (r, in), and `lora_B` is $B^T$, (out, r).

Source: peft.LoraConfig, and the files that peft 0.21 writes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from npllm.errors import ConfigError
from npllm.files.atomic import write_atomically
from npllm.files.folders import new_folder
from npllm.interop import huggingface
from npllm.interop.families import EMBEDDINGS, family_of, linear_layers
from npllm.interop.safetensors_files import safetensors_library
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base"
PREFIX = "base_model.model."  # PEFT's own wrapping of a model


def save(model: GPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a folder of PEFT, with the base inside of it.

    Raises ConfigError for a model without LoRA, and as `huggingface.save` does.
    """
    if not model.config.lora_rank:
        raise ConfigError("The model has no factors of LoRA; export it with --format hf.")
    fields, tensors, library = _fields(model), _tensors(model), safetensors_library()
    folder = new_folder(path)
    huggingface.save_weights(model.config, model.frozen, tokenizer, folder / BASE)
    huggingface.write_json(folder / CONFIG, fields | {"base_model_name_or_path": str(folder / BASE)})
    write_atomically(folder / WEIGHTS, library.numpy.save(tensors, {"format": "pt"}))


def _fields(model: GPT) -> dict[str, Any]:
    """The fields of adapter_config.json that describe the factors."""
    config, family = model.config, family_of(model.config)
    new = list(range(config.vocab_size - config.lora_new_tokens, config.vocab_size))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted({_last(theirs) for _, theirs, _ in linear_layers(config)}),
        "fan_in_fan_out": family == "gpt2",
        "trainable_token_indices": {_last(name): new for name in _tables(model).values()} or None,
        "bias": "none",
        "inference_mode": True,
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _tables(model: GPT) -> dict[str, str]:
    """Our name -> their name of each layer whose rows of new tokens are trained."""
    names = {"token_embedding": EMBEDDINGS[model.config.position], "lm_head": "lm_head"}
    return {ours: theirs for ours, theirs in names.items() if f"{ours}.new_rows" in model.params}


def _tensors(model: GPT) -> dict[str, np.ndarray]:
    """The content of adapter_model.safetensors."""
    found = {}
    for ours, theirs, where in linear_layers(model.config):
        a, b = (model.params[f"{ours}.weight.lora_{factor}"] for factor in "ab")  # (in, r), (r, out)
        found |= {f"{theirs}.lora_A.weight": a.T, f"{theirs}.lora_B.weight": b[:, where].T}
    for ours, theirs in _tables(model).items():
        found[f"{theirs}.token_adapter.trainable_tokens_delta"] = model.params[f"{ours}.new_rows"]
    return {PREFIX + name: np.ascontiguousarray(array) for name, array in found.items()}
