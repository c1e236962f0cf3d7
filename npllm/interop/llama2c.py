"""Files of llama2.c: Llama's network for `run`, a program of one C file.

    model.bin        seven int32, then the weights, float32, each kind of all layers
    tokenizer.bin    length of the longest token; of each token its score and its bytes

    ./run model.bin -z tokenizer.bin -i "def "

The weights are exact. `run` rotates the elements 2i and 2i + 1 of a head together, so
the rows of queries and keys change places.

Its tokens have fixed numbers: 1 starts a text and ends it, and the byte b is b + 3. So
the tokens are renumbered, and the rows of the embedding and the head with them:

    0, 2        the bytes 0xFE and 0xFF, which no text in UTF-8 has
    1           <|endoftext|>
    3 ... 256   the bytes 0x00 ... 0xFD
    257 ...     all other tokens in their order

`run` has no split. It starts from characters and joins the pair whose token has the
highest score, here minus the rank of the merge. A prompt can therefore have other ids
than in this package (LIMITS).

Source: run.c and export.py of llama2.c, version 0 of the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import pack

import numpy as np

from npllm.errors import ConfigError
from npllm.files.atomic import write_atomically
from npllm.files.folders import new_folder
from npllm.interop.families import family_of, state_dict
from npllm.interop.gguf import interleaved
from npllm.interop.gguf_vocabulary import check_tokenizer
from npllm.model import GPT, ModelConfig
from npllm.reference.rotary import rotary_tables
from npllm.tokenizer import Tokenizer

NETWORK = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "qk_norm": False}
NETWORK |= {"norm_eps": 1e-5, "rope_theta": 10000.0}
NEVER_MERGED = -1e10  # run.c merges only above this score
LIMITS = (
    "The weights are exact, but run reads a prompt in its own way: it puts a space before it and merges across words, "
    "so a prompt can get other tokens than here; and it does not print a character that takes several tokens."
)


def save(model: GPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a folder with model.bin and tokenizer.bin. LoRA's factors are merged.

    path: the folder, which must be empty or not exist. Raises ConfigError for a network
    or a tokenizer that llama2.c does not have and for a folder that is not empty, and
    ResourceError where the disk is full.
    """
    config = model.config.language_model
    family_of(model.config)  # refuses what no family has
    differences = [f"model.{name} = {value}" for name, value in NETWORK.items() if getattr(model.config, name) != value]
    if config.n_head * config.head_width != config.n_embd:
        differences.append("model.head_dim = model.n_embd / model.n_head")
    if differences:
        raise ConfigError(f"llama2.c has only Llama's network, without biases; it needs {', '.join(differences)}.")
    check_tokenizer(tokenizer, "llama2.c")
    order, folder, arrays = _order(tokenizer), new_folder(path), model.merged()
    write_atomically(folder / "model.bin", _model_parts(config, arrays, order))
    write_atomically(folder / "tokenizer.bin", _tokenizer_file(tokenizer, order))


def _order(tokenizer: Tokenizer) -> list[int]:
    """llama2.c's id of each token -> ours."""
    ids = tokenizer.vocabulary.ordinary_ids()
    bytes_ = [ids[bytes([byte])] for byte in range(256)]
    first = [bytes_[0xFE], tokenizer.eot_id, bytes_[0xFF], *bytes_[:0xFE]]
    return first + sorted(set(range(tokenizer.vocab_size)) - set(first))


def _model_parts(config: ModelConfig, arrays: Mapping[str, np.ndarray], order: list[int]) -> Iterator[bytes]:
    """Yield model.bin. A negative number of tokens says that the head is not tied."""
    n_tokens = config.vocab_size if config.tie_embeddings else -config.vocab_size
    sizes = config.n_embd, config.mlp_width, config.n_layer, config.n_head, config.kv_heads, n_tokens, config.block_size
    yield pack("<7i", *sizes)
    for array in _tensors(config, arrays, order):
        yield np.ascontiguousarray(array, np.float32).tobytes()


def _tensors(config: ModelConfig, arrays: Mapping[str, np.ndarray], order: list[int]) -> Iterator[np.ndarray]:
    """Yield the weights in the file's order; matrices are (out, in)."""
    found = state_dict(config, arrays)

    def of_layers(part: str) -> list[np.ndarray]:
        return [found[f"model.layers.{layer}.{part}.weight"] for layer in range(config.n_layer)]

    yield found["model.embed_tokens.weight"][order]
    yield from of_layers("input_layernorm")
    yield from (interleaved(array, config.n_head) for array in of_layers("self_attn.q_proj"))
    yield from (interleaved(array, config.kv_heads) for array in of_layers("self_attn.k_proj"))
    for part in ("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"):
        yield from of_layers(part)
    for part in ("gate", "down", "up"):
        yield from of_layers(f"mlp.{part}_proj")
    yield found["model.norm.weight"]
    yield from rotary_tables(config.block_size, config.head_width, np.float32)  # which run skips
    if not config.tie_embeddings:
        yield found["lm_head.weight"][order]


def _tokenizer_file(tokenizer: Tokenizer, order: list[int]) -> bytes:
    """Return tokenizer.bin."""
    vocabulary = tokenizer.vocabulary
    ids = vocabulary.ordinary_ids()
    scores: dict[int, float] = {}
    for rank, (left, right) in enumerate(vocabulary.merges):
        scores.setdefault(ids[vocabulary.tokens[left] + vocabulary.tokens[right]], -float(rank))
    # C ends a string at a zero, so the byte 0 is written as run reads it.
    texts = [b"<0x00>" if token == b"\0" else token for token in vocabulary.tokens]
    entries = (pack("<fi", scores.get(i, NEVER_MERGED), len(texts[i])) + texts[i] for i in order)
    return pack("<i", max(map(len, texts))) + b"".join(entries)
