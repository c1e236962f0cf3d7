"""Finds, reads and writes the files of a tokenizer."""

import os
from collections.abc import Sequence
from pathlib import Path

from npllm.errors import ConfigError, DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import parse_json
from npllm.files.text_format import decode
from npllm.files.user_path import user_path
from npllm.tokenizer.gpt2_files import from_gpt2_files, to_gpt2_files
from npllm.tokenizer.pretokenize import SPLITS, split_pattern
from npllm.tokenizer.tiktoken_file import from_tiktoken, to_tiktoken
from npllm.tokenizer.tokenizer_json import from_json, to_json
from npllm.tokenizer.vocabulary import Vocabulary

TOKENIZER_JSON = "tokenizer.json"
TIKTOKEN = ".tiktoken"
GPT2_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

MAX_FILE_BYTES = 64 << 20  # the largest public tokenizer.json files are half as large


def read(path: str | os.PathLike, split: str | None, special_tokens: Sequence[str]) -> Vocabulary:
    """Return the vocabulary in a file, or in a folder with a known set of files.

    split, special_tokens: of a .tiktoken file. Raises DataError when there is none or
    when it cannot be used.
    """
    path = user_path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == TIKTOKEN:
        if split is None:
            raise ConfigError(f"{path} does not say how text is split; also give split, one of {', '.join(SPLITS)}.")
        return from_tiktoken(_read_text(path), str(path), split_pattern(split), special_tokens)
    return from_json(_read_json(path), str(path))


def _read_folder(folder: Path) -> Vocabulary:
    if (folder / TOKENIZER_JSON).exists():
        return from_json(_read_json(folder / TOKENIZER_JSON), str(folder / TOKENIZER_JSON))
    for vocabulary_name, merges_name in GPT2_PAIRS:
        vocabulary_path, merges_path = folder / vocabulary_name, folder / merges_name
        if vocabulary_path.exists() and merges_path.exists():
            ids, merges_text = _read_json(vocabulary_path), _read_text(merges_path)
            return from_gpt2_files(ids, merges_text, str(vocabulary_path), str(merges_path))
    pairs = " nor ".join(" + ".join(pair) for pair in GPT2_PAIRS)
    raise DataError(f"{folder} has neither {TOKENIZER_JSON} nor {pairs}; give a folder with one of them.")


def _read_json(path: Path) -> object:
    try:
        return parse_json(_read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); save or download it again.") from None


def _read_text(path: Path) -> str:
    return decode(path, read_bounded(path, MAX_FILE_BYTES))


def write(vocabulary: Vocabulary, path: str | os.PathLike) -> None:
    """Write a file, whole or not at all.

    Its name decides the format: *.tiktoken; vocab.json, with merges.txt beside it; any
    other is a tokenizer.json. Raises ResourceError when it cannot be written, and
    DataError when the format cannot hold the vocabulary.
    """
    path = user_path(path)
    if path.is_dir():
        path = path / TOKENIZER_JSON
    if path.suffix == TIKTOKEN:
        write_atomically(path, to_tiktoken(vocabulary, str(path)))
    elif path.name == GPT2_PAIRS[0][0]:
        ids, merges = to_gpt2_files(vocabulary, str(path))
        write_atomically(path.with_name(GPT2_PAIRS[0][1]), merges)
        write_atomically(path, ids)
    else:
        write_atomically(path, to_json(vocabulary))
