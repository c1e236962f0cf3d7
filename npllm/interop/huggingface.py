"""Folders of Hugging Face: a model that `transformers` and its readers load, and back.

    config.json                the network, in the words of its family (families.py)
    generation_config.json     the tokens that end a text
    model.safetensors          the weights, float32; or several files and an index
    tokenizer.json             the format of our own runs
    tokenizer_config.json      how `transformers` must take it
    chat_template.jinja        after `npllm sft` on conversations

`AutoModelForCausalLM` and `AutoTokenizer` read the folder. Weights are read tensor by
tensor, so that a model is in memory once.

The tokenizer class is PreTrainedTokenizerFast: the classes of the families put a split
of their own in the place of the one in tokenizer.json, and spaces vanish.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npllm.data.prompt_format import ASSISTANT, END, PromptFormat
from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.folders import new_folder
from npllm.files.user_path import user_path
from npllm.interop.families import EMBEDDINGS, config_of, family_of, fields_of, state_dict
from npllm.interop.safetensors_files import WEIGHTS, Stored, read_json, safetensors_library, stored_tensors
from npllm.model import GPT, ModelConfig
from npllm.model.parameters import Parameters, parameter_shapes
from npllm.model.transformer import Storage
from npllm.tokenizer import Tokenizer

CONFIG = "config.json"
HEAD = "lm_head.weight"
IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # ends of names: masks and tables, no weights
LISTED = 5  # tensors in a message
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + '"
    + END
    + "' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '"
    + ASSISTANT
    + "' }}{%- endif -%}"
)


def to_state_dict(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays of a model, its weights or its gradients, under Hugging Face's
    names and in its layout. They are views. Raises ConfigError as `family_of` does."""
    family_of(config)
    return state_dict(config, arrays)


def save(model: GPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a folder of Hugging Face. LoRA's factors are merged.

    path: the folder, which must be empty or not exist. Raises ConfigError for a network
    that no family holds, for a folder that is not empty, and where safetensors is not
    installed; and ResourceError where the disk is full.
    """
    save_weights(model.config, model.merged(), tokenizer, path)


def save_weights(
    config: ModelConfig, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer, path: str | Path
) -> None:
    """Write the weights of a network, by our names, as `save` does."""
    tensors = {name: np.ascontiguousarray(view) for name, view in to_state_dict(config, weights).items()}
    save_tensors, folder = safetensors_library().numpy.save, new_folder(path)
    asked = PromptFormat(tokenizer)
    eot, end = tokenizer.eot_id, asked.stop_id() if asked.is_chat else tokenizer.eot_id
    ends = {"bos_token_id": eot, "eos_token_id": end, "pad_token_id": eot}
    tokens = {"bos_token": eot, "eos_token": end, "pad_token": eot}
    texts = {number: text for text, number in tokenizer.special_tokens.items()}
    write_json(folder / CONFIG, fields_of(config, family_of(config)) | {"dtype": "float32"} | ends)
    write_json(folder / "generation_config.json", ends)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.block_size,
            **{name: texts[number] for name, number in tokens.items() if number is not None},
        },
    )
    if asked.is_chat:
        write_atomically(folder / "chat_template.jinja", (CHAT_TEMPLATE + "\n").encode())
    tokenizer.save(folder / "tokenizer.json")
    write_atomically(folder / WEIGHTS, save_tensors(tensors, {"format": "pt"}))


def load(path: str | Path, *, dtype: str = "float32") -> tuple[GPT, Tokenizer]:
    """Return the model and the tokenizer of a folder of Hugging Face.

    dtype: "float32", or "bf16" to multiply by weights rounded to bfloat16. Raises
    DataError for files that are missing, damaged or of a network that this package does
    not have, and ConfigError where safetensors is not installed.
    """
    folder = user_path(path)
    config = config_of(read_json(folder / CONFIG), str(folder / CONFIG))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise DataError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {config.vocab_size}; give the "
            "two that belong together."
        )
    tensors = _tensors(config, folder)
    model = GPT(config, dtype=dtype, storage=Storage(params=Parameters(parameter_shapes(config), np.float32)))
    for name, view in state_dict(config, model.params).items():
        tensors[name].read_into(view)
    if HEAD in tensors and config.tie_embeddings:
        embedding = model.params["token_embedding"]
        if not all(np.array_equal(values, embedding[where]) for where, values in tensors[HEAD].parts()):
            raise DataError(f"{folder} says tie_word_embeddings, but its lm_head differs; set it to false.")
    return model, tokenizer


def _tensors(config: ModelConfig, folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by our family's names. Raises DataError where one is
    missing, unexpected or of another shape, before any memory is taken."""
    try:
        empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
    except ValueError:  # of NumPy
        raise DataError(f"{folder / CONFIG} describes a network that no memory holds; get it again.") from None
    shapes = {name: array.shape for name, array in state_dict(config, empty).items()}
    optional = {HEAD: shapes[f"{EMBEDDINGS[config.position]}.weight"]} if config.tie_embeddings else {}
    found = stored_tensors(folder)
    prefix = "transformer." if config.position == "learned" and "wte.weight" in found else ""
    tensors = {f"{prefix}{name}" if name != HEAD else name: stored for name, stored in found.items()}
    unexpected = tensors.keys() - shapes.keys() - optional.keys()
    problems = {
        "are missing": sorted(shapes.keys() - tensors.keys()),
        "are unexpected": sorted(name for name in unexpected if not name.endswith(IGNORED)),
    }
    said = [f"the tensors {_listed(names)} {problem}" for problem, names in problems.items() if names]
    if said:
        raise DataError(f"{folder}: {' and '.join(said)}; get the folder again.")
    for name, shape in (shapes | optional).items():
        if name in tensors:
            tensors[name].check(shape)
    return tensors


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name:.80}" for name in names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write the fields that have a value."""
    given = {name: value for name, value in fields.items() if value is not None}
    write_atomically(path, (json.dumps(given, indent=2) + "\n").encode())
