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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from npllm.data.prompt_format import ASSISTANT, END, PromptFormat
from npllm.errors import ConfigError, DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.folders import make_folder
from npllm.files.strict_json import parse_json
from npllm.files.user_path import user_path
from npllm.interop.families import config_of, family_of, fields_of, state_dict
from npllm.model import GPT, ModelConfig
from npllm.model.parameters import parameter_shapes
from npllm.tokenizer import Tokenizer

CONFIG = "config.json"
LARGEST_JSON = 1 << 26  # bytes of config.json or of an index
LISTED = 5  # tensors in a message
DTYPES = ("F32", "F16", "BF16")
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
    save_tensors = _safetensors().numpy.save
    config, folder = model.config.language_model, user_path(path)
    family = family_of(model.config)
    tensors = {name: np.ascontiguousarray(view) for name, view in state_dict(config, model.merged()).items()}
    make_folder(folder)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder.")
    asked = PromptFormat(tokenizer)
    eot, end = tokenizer.eot_id, asked.stop_id() if asked.is_chat else tokenizer.eot_id
    ends = {"bos_token_id": eot, "eos_token_id": end, "pad_token_id": eot}
    tokens = {"bos_token": eot, "eos_token": end, "pad_token": eot}
    texts = {number: text for text, number in tokenizer.special_tokens.items()}
    _write_json(folder / CONFIG, fields_of(config, family) | {"dtype": "float32"} | ends)
    _write_json(folder / "generation_config.json", ends)
    _write_json(
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
    write_atomically(folder / "model.safetensors", save_tensors(tensors, {"format": "pt"}))


def load(path: str | Path, *, dtype: str = "float32") -> tuple[GPT, Tokenizer]:
    """Return the model and the tokenizer of a folder of Hugging Face.

    dtype: "float32", or "bf16" to multiply by weights rounded to bfloat16. Raises
    DataError for files that are missing, damaged or of a network that this package does
    not have, and ConfigError where safetensors is not installed.
    """
    folder = user_path(path)
    config = config_of(_read_json(folder / CONFIG), str(folder / CONFIG))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise DataError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {config.vocab_size}; give the "
            "two that belong together."
        )
    with _tensors(folder) as files:
        names = _names(files, config, folder)
        model = GPT(config, dtype=dtype)
        for name, view in state_dict(config, model.params).items():
            view[...] = _tensor(files, names[name], view.shape, folder)
        tied = names.get("lm_head.weight")
        if config.tie_embeddings and tied is not None:
            head = _tensor(files, tied, model.params["token_embedding"].shape, folder)
            if not np.array_equal(head, model.params["token_embedding"]):
                raise DataError(f"{folder} says tie_word_embeddings, but its lm_head differs; set it to false.")
    if not np.isfinite(model.params.flat).all():
        raise DataError(f"{folder} holds weights that are not finite; get the files again.")
    return model, tokenizer


def _safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401  gives NumPy the dtype bfloat16
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Hugging Face's files need the package {error.name}; install it (pip install 'npllm[hf]')."
        ) from None
    return safetensors


@contextmanager
def _tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The open file of each tensor, by the tensor's name."""
    library = _safetensors()
    with ExitStack() as stack:
        found = {}
        for name in _file_names(folder):
            try:
                file = stack.enter_context(library.safe_open(folder / name, framework="numpy"))
                found |= dict.fromkeys(file.keys(), file)
            except (library.SafetensorError, OSError) as error:
                raise DataError(f"{folder / name} cannot be read ({error}); get the file again.") from error
        yield found


def _file_names(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    table = _read_json(index).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{index} names the file {name!r:.80} outside of its folder; get the folder again.")
    if not names:
        raise DataError(f"{index} names no files; get it again.")
    return names


def _names(files: Mapping[str, Any], config: ModelConfig, folder: Path) -> dict[str, str]:
    """Our family's name of each tensor -> its name in the files. Raises DataError for
    tensors that are missing or unexpected."""
    prefix = "transformer." if config.position == "learned" and "wte.weight" in files else ""
    names = {f"{prefix}{name}" if name != "lm_head.weight" else name: name for name in files}
    ignored = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # masks and tables, no weights
    wanted = set(_shapes(config))
    optional = {"lm_head.weight"} if config.tie_embeddings else set()
    problems = {
        "are missing": sorted(wanted - set(names)),
        "are unexpected": sorted(name for name in set(names) - wanted - optional if not name.endswith(ignored)),
    }
    for problem, which in problems.items():
        if which:
            more = f" and {len(which) - LISTED} more" if len(which) > LISTED else ""
            raise DataError(f"{folder}: the tensors {', '.join(which[:LISTED])}{more} {problem}; get the folder again.")
    return names


def _shapes(config: ModelConfig) -> list[str]:
    """The names of a network's tensors, found with arrays that take no memory."""
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
    return list(state_dict(config, empty))


def _tensor(files: Mapping[str, Any], name: str, shape: tuple[int, ...], folder: Path) -> np.ndarray:
    described = files[name].get_slice(name)
    found, dtype = tuple(described.get_shape()), described.get_dtype()
    if found != shape or dtype not in DTYPES:
        raise DataError(
            f"{folder}: the tensor {name} is {found} of {dtype}, but {shape} of {', '.join(DTYPES)} is needed; get the "
            "folder again."
        )
    return files[name].get_tensor(name)


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    given = {name: value for name, value in fields.items() if value is not None}
    write_atomically(path, (json.dumps(given, indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(read_bounded(path, LARGEST_JSON))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); get it again.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path} holds no JSON object; get it again.")
    return fields
