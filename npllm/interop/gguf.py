"""GGUF: one file with a network, its weights and its tokenizer, for llama.cpp.

    model-f16.gguf    llama.cpp and the programs built on it read it
    Modelfile         Ollama makes a model of both: ollama create NAME -f Modelfile

The networks are those of three families (families.py). Each tensor is what llama.cpp's
own converter makes of Hugging Face's tensor: a matrix is (out, in). llama.cpp rotates
the elements 2i and 2i + 1 of a Llama head together, and we rotate i and i + D/2, so the
rows of queries and keys change places. In a Qwen3 head it rotates the same pairs as we
do.

    f32     float32
    f16     float16
    q8_0    blocks of 32 numbers: a float16 scale and 32 signed bytes

Vectors (norm weights and biases) and GPT-2's position table are always float32.

Source: the format's description and the loader in llama.cpp, the package `gguf`.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from npllm.data.prompt_format import CHAT_TOKENS, PromptFormat
from npllm.errors import ConfigError
from npllm.files.atomic import write_atomically
from npllm.files.folders import new_folder
from npllm.interop.families import family_of, state_dict
from npllm.interop.gguf_vocabulary import add_vocabulary
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import Tokenizer

OutType = Literal["f32", "f16", "q8_0"]

MOST_LAYERS = 512  # of llama.cpp
BLOCK = 32  # numbers that have one scale in q8_0
LARGEST_FLOAT16 = 65504.0
LARGEST = {"f16": LARGEST_FLOAT16, "q8_0": 127 * LARGEST_FLOAT16}
ALIGNMENT = 32  # bytes; where a tensor starts

CHAT_TURNS = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"  # in Go's templates


class Tensor(NamedTuple):
    """A tensor of the file.

    shape: (out, in), or (n,) of a vector. values: a view of the weights, of any shape,
    whose elements have the tensor's order. kind: the type in the file.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    kind: OutType


def save(model: GPT, tokenizer: Tokenizer, path: str | Path, outtype: OutType = "f32") -> None:
    """Write a folder with a GGUF file and Ollama's Modelfile.

    path: the folder, which must be empty or not exist. outtype: the type of matrices.
    LoRA's factors are merged. Raises ConfigError for a network or a tokenizer that
    llama.cpp does not have, for weights that the type cannot hold, for a folder that is
    not empty, and where the package gguf is not installed; and ResourceError where the
    disk is full.
    """
    library = _gguf()
    if outtype not in get_args(OutType):
        raise ConfigError(f"outtype is {outtype!r:.40}; choose one of {', '.join(get_args(OutType))}.")
    family, config = family_of(model.config), model.config.language_model
    if config.n_layer > MOST_LAYERS:
        raise ConfigError(f"model.n_layer is {config.n_layer}; llama.cpp has at most {MOST_LAYERS} layers.")
    tensors = _tensors(library, config, family, model.merged(), outtype)
    header = _header(library, config, family, tokenizer, tensors)
    folder, name = new_folder(path), file_name(outtype)
    write_atomically(folder / name, _parts(library, header, tensors))
    write_atomically(folder / "Modelfile", _modelfile(name, config, tokenizer).encode())


def file_name(outtype: OutType) -> str:
    """Return the name of the GGUF file in its folder."""
    return f"model-{outtype}.gguf"


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"GGUF files need the package {error.name}; install it (pip install 'npllm[gguf]')."
        ) from None
    return gguf


def _tensors(
    library: Any, config: ModelConfig, family: str, arrays: Mapping[str, np.ndarray], outtype: OutType
) -> dict[str, Tensor]:
    """Return the tensors by GGUF's names. Raises ConfigError as `_check` does."""
    names = library.get_tensor_name_map(library.MODEL_ARCH[family.upper()], config.n_layer)
    heads = {"q_proj": config.n_head, "k_proj": config.kv_heads} if family == "llama" else {}
    found = {}
    for name, array in state_dict(config, arrays).items():
        *_, part, kind = name.split(".")
        array = array.T if family == "gpt2" and ".h." in name else array
        values = interleaved(array, heads[part]) if part in heads else array
        name = f"{names.get_name(name.removesuffix(f'.{kind}'))}.{kind}"
        is_plain = array.ndim == 1 or name == "position_embd.weight"
        found[name] = Tensor(array.shape, values, "f32" if is_plain else outtype)
    if family == "gpt2":  # some readers look for a head of its own
        found.setdefault("output.weight", found["token_embd.weight"])
    for name, tensor in found.items():
        _check(name, tensor)
    return found


def interleaved(array: np.ndarray, n_heads: int) -> np.ndarray:
    """Return a view in which the rows i and i + D/2 of each head follow each other.

    array: (n_heads * D, ...), a weight or a bias of queries or keys. The view is
    (n_heads, D/2, 2, ...).
    """
    return array.reshape(n_heads, 2, -1, *array.shape[1:]).swapaxes(1, 2)


def _check(name: str, tensor: Tensor) -> None:
    """Raise ConfigError for values that this type of tensor cannot hold."""
    values, kind = tensor.values, tensor.kind
    if kind == "q8_0" and tensor.shape[-1] % BLOCK:
        raise ConfigError(
            f"q8_0 has blocks of {BLOCK} numbers, but the rows of {name} have {tensor.shape[-1]}; choose f16, or train "
            f"a model whose widths are multiples of {BLOCK}."
        )
    if kind != "f32" and not max(values.max(), -values.min()) <= LARGEST[kind]:  # or NaN
        raise ConfigError(f"{kind} cannot hold the largest values of {name}; choose f32.")


def _header(
    library: Any, config: ModelConfig, family: str, tokenizer: Tokenizer, tensors: Mapping[str, Tensor]
) -> bytes:
    """Return everything before the values of the tensors."""
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    with TemporaryDirectory() as folder:  # the package writes only files
        path = Path(folder) / "header"
        writer = library.GGUFWriter(path, family)
        writer.add_type("model")
        writer.add_file_type(library.LlamaFileType[file_types[tensors["token_embd.weight"].kind]])
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
        _add_network(writer, config, family)
        add_vocabulary(writer, tokenizer)
        for name, (shape, _, kind) in tensors.items():
            type_ = library.GGMLQuantizationType[kind.upper()]
            n_bytes = prod(library.quants.quant_shape_to_byte_shape(shape, type_))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def _parts(library: Any, header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the file. One tensor at a time is converted."""
    yield header + _padding(header)
    for shape, values, kind in tensors.values():
        rows = np.ascontiguousarray(values, np.float32).reshape(shape)
        data = library.quants.quantize(rows, library.GGMLQuantizationType[kind.upper()])
        data = data.reshape(-1).view(np.uint8).data
        yield data
        yield _padding(data)


def _padding(data: bytes | memoryview) -> bytes:
    return bytes(-len(data) % ALIGNMENT)


def _add_network(writer: Any, config: ModelConfig, family: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    if family == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rope_theta)


def _modelfile(name: str, config: ModelConfig, tokenizer: Tokenizer) -> str:
    """Return what `ollama create` reads."""
    is_chat = PromptFormat(tokenizer).is_chat
    stops = "".join(f'PARAMETER stop "{token}"\n' for token in CHAT_TOKENS) if is_chat else ""
    template = CHAT_TURNS if is_chat else "{{ .Prompt }}"
    return f'FROM ./{name}\nPARAMETER num_ctx {config.block_size}\n{stops}TEMPLATE """{template}"""\n'
