"""Token shards: the tokens of one side of a corpus in one HDF5 file.

    tokens            (n_tokens,) uint16, or uint32 when the vocabulary has more than
                      65,536 entries: the documents one after another, each followed by
                      the end-of-text token when there is one
    document_starts   (n_documents,) int64
    attributes        version, vocab_size, eot_id (-1: none), n_bytes (UTF-8 bytes of
                      the text, the denominator of bits per byte), n_documents, three
                      SHA-256: of the tokenizer, of the source text, of this content

A shard may come from an untrusted source. The reader accepts only this layout
(`plain_hdf5.py`), with values that are consistent.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from npllm.data.plain_hdf5 import HDF5_ERRORS, NotPlain, check_names, open_file, read_attribute, read_dataset
from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.spool import Spool

VERSION = 1
UINT16_VOCABULARY = 2**16  # the largest vocabulary whose ids fit in uint16
LARGEST_VOCABULARY = 2**32
INTEGERS = ("version", "vocab_size", "eot_id", "n_bytes", "n_documents")
DIGESTS = ("tokenizer_sha256", "source_sha256", "sha256")
INTEGER_TYPE, DIGEST_TYPE, START_TYPE = np.dtype("<i8"), np.dtype("S64"), np.dtype("<i8")


class TokenShard(NamedTuple):
    """The content of a shard in memory.

    tokens: (n_tokens,) uint16 or uint32. document_starts: (n_documents,) int64,
    ascending. eot_id: None when documents have no end-of-text token. n_bytes: UTF-8
    bytes of the text. sha256: of all other fields.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    vocab_size: int
    eot_id: int | None
    n_bytes: int
    tokenizer_sha256: str
    source_sha256: str
    sha256: str


def write_shard(
    path: str | Path,
    documents: Iterable[np.ndarray | Iterator[np.ndarray]],
    *,
    vocab_size: int,
    eot_id: int | None,
    n_bytes: int,
    tokenizer_sha256: str,
    source_sha256: str,
) -> int:
    """Write documents as a shard and return its token count.

    documents: 1-D integer arrays of token ids, or iterators over the parts of one. Many
    tokens are kept in a file without a name beside `path`, not in memory.

    Equal arguments give an equal file. Raises DataError for an id outside 0 ...
    vocab_size - 1 or a malformed hash, and ResourceError when the disk is full; an old
    file at `path` then stays as it was.
    """
    tokens, document_starts = _join(path, documents, vocab_size, eot_id)
    dtype = _token_type(vocab_size)
    n_tokens = tokens.check() // dtype.itemsize
    header = {
        "version": VERSION,
        "vocab_size": vocab_size,
        "eot_id": -1 if eot_id is None else eot_id,
        "n_bytes": n_bytes,
        "n_documents": len(document_starts),
        "tokenizer_sha256": tokenizer_sha256,
        "source_sha256": source_sha256,
    }
    header["sha256"] = _content_sha256(header, tokens.chunks(), document_starts)
    if violation := _first_violation(header, n_tokens, document_starts):
        raise DataError(f"{path} cannot become a token shard ({violation}); correct the arguments of write_shard.")
    # HDF5 does not survive a full disk: closing the file fails, and the process crashes
    # at exit. So the file is built in a spool, which holds errors back. It is then
    # written with ordinary writes, whose errors can be handled.
    image = Spool(Path(path).parent)
    with h5py.File(image, "w") as file:
        dataset, start = file.create_dataset("tokens", (n_tokens,), dtype), 0
        for chunk in tokens.chunks():
            ids = np.frombuffer(chunk, dtype)
            dataset[start : start + len(ids)] = ids
            start += len(ids)
        file.create_dataset("document_starts", data=document_starts)
        for name in INTEGERS:
            file.attrs.create(name, header[name], dtype=INTEGER_TYPE)
        for name in DIGESTS:
            file.attrs.create(name, header[name].encode(), dtype=DIGEST_TYPE)
    write_atomically(path, image.chunks())
    return n_tokens


def read_shard(path: str | Path) -> TokenShard:
    """Return the content of a shard, completely checked.

    Raises DataError for a file that is absent, damaged or not a shard.
    """
    if not os.path.isfile(path):
        raise DataError(f"the token shard {path} does not exist; make it from its text, or correct the path.")
    with _opened(path) as file:
        header = _read_header(path, file.id)
        check_names(file.id, ("tokens", "document_starts"))
        tokens = read_dataset(path, file.id, "tokens", _token_type(header["vocab_size"]))
        document_starts = read_dataset(path, file.id, "document_starts", START_TYPE)
    if violation := _first_violation(header, len(tokens), document_starts):
        raise _damaged(path, violation)
    if len(tokens) and tokens.max() >= header["vocab_size"]:
        raise _damaged(path, "a token is not in the vocabulary")
    if header["sha256"] != _content_sha256(header, [tokens], document_starts):
        raise _damaged(path, "its content does not match its SHA-256")
    eot_id = None if header["eot_id"] < 0 else header["eot_id"]
    names = ("vocab_size", "n_bytes", "tokenizer_sha256", "source_sha256", "sha256")
    return TokenShard(tokens, document_starts, eot_id=eot_id, **{name: header[name] for name in names})


class Extent(NamedTuple):
    """What a shard holds, without its tokens. n_bytes: of its text, as UTF-8."""

    source_sha256: str
    n_bytes: int
    n_tokens: int


def read_extent(path: str | Path) -> Extent:
    """Return what a shard holds. Its tokens are not read.

    Raises DataError for a file that is damaged or not a shard.
    """
    with _opened(path) as file:
        header = _read_header(path, file.id)
        check_names(file.id, ("tokens", "document_starts"))
        return Extent(header["source_sha256"], header["n_bytes"], file["tokens"].size)


@contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """A shard, open for reading. Raises DataError for a file that is no plain HDF5
    file, and for what is read from it and is not as it should be."""
    try:
        with open_file(path) as file:
            yield file
    except NotPlain as error:
        raise _damaged(path, str(error)) from None
    except HDF5_ERRORS as error:
        raise _damaged(path, f"HDF5 reports: {' '.join(str(error).split())}") from error


def _damaged(path: str | Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged or no token shard ({reason}); make it again from its text.")


def _join(
    path: str | Path, documents: Iterable[np.ndarray | Iterator[np.ndarray]], vocab_size: int, eot_id: int | None
) -> tuple[Spool, np.ndarray]:
    """All documents with their end-of-text tokens, and the start of each document."""
    dtype, spool = _token_type(vocab_size), Spool(Path(path).parent)
    end = np.array([] if eot_id is None else [eot_id], np.int64)
    n_tokens, document_starts = 0, []
    for index, document in enumerate(documents):
        document_starts.append(n_tokens)
        parts = document if isinstance(document, Iterator) else [document]
        for ids in map(np.asarray, itertools.chain(parts, [end])):
            # Before the cast: 65,536 as uint16 would be a valid 0.
            if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
                raise DataError(
                    f"document {index} for {path} has token ids from {ids.min()} to {ids.max()} but the vocabulary has "
                    f"{vocab_size} entries; encode the text with the tokenizer of this shard."
                )
            spool.write(ids.astype(dtype))
            n_tokens += len(ids)
    return spool, np.array(document_starts, START_TYPE)


def _token_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= UINT16_VOCABULARY else "<u4")


def _content_sha256(header: dict, tokens: Iterable, document_starts: np.ndarray) -> str:
    """tokens: in parts, each of which is bytes or an array."""
    fields = {name: header[name] for name in (*INTEGERS, *DIGESTS) if name != "sha256"}
    digest = hashlib.sha256(json.dumps(fields, default=int).encode())
    for part in tokens:
        digest.update(part)
    digest.update(document_starts)
    return digest.hexdigest()


def _first_violation(header: dict, n_tokens: int, document_starts: np.ndarray) -> str | None:
    """The first rule that a shard breaks, or None.

    Writer and reader share the rules. Each checks the ids in its own way.
    """
    n_documents, vocab_size, eot_id = len(document_starts), header["vocab_size"], header["eot_id"]
    ends = np.append(document_starts[1:], n_tokens)
    rules = {
        "vocab_size is out of range": 1 <= vocab_size <= LARGEST_VOCABULARY,
        "eot_id is not in the vocabulary": -1 <= eot_id < vocab_size,
        "n_bytes is negative": header["n_bytes"] >= 0,
        "n_documents differs from document_starts": header["n_documents"] == n_documents,
        "a hash is not 64 hexadecimal digits": all(re.fullmatch("[0-9a-f]{64}", header[name]) for name in DIGESTS),
        "the first document does not start at 0": (document_starts[0] == 0) if n_documents else n_tokens == 0,
        "document_starts are not ascending inside the tokens": np.all(document_starts <= ends),
    }
    return next((rule for rule, holds in rules.items() if not holds), None)


def _read_header(path: str | Path, file: h5py.h5f.FileID) -> dict:
    version = read_attribute(file, "version", INTEGER_TYPE)
    if version != VERSION:
        raise DataError(
            f"{path} is a token shard of version {version} and this npllm reads version {VERSION}; make it again from "
            "its text."
        )
    if h5py.h5a.get_num_attrs(file) != len(INTEGERS) + len(DIGESTS):
        raise NotPlain("it has unknown attributes")
    header = {name: int(read_attribute(file, name, INTEGER_TYPE)) for name in INTEGERS}
    return header | {name: read_attribute(file, name, DIGEST_TYPE).decode("ascii") for name in DIGESTS}
