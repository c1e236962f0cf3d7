"""Data preparation: from raw text to token shards."""

from collections.abc import Callable

import numpy as np

from npllm.data.corpora import Corpus, Document, load_corpus
from npllm.data.shards import write_shard
from npllm.errors import DataError
from npllm.files.user_path import user_path
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import Tokenizer, UnknownCharacter, byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.tokenizer import END_OF_TEXT
from npllm.training.config import DataConfig


def build_tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the config names: trained on the training text only, or
    loaded.

    A char vocabulary also has the characters of the validation text, which could not be
    encoded without them.
    """
    if config.tokenizer == "bpe":
        return train_bpe((document.text for document in corpus.train), config.vocab_size)
    if config.tokenizer == "byte":
        return byte_tokenizer()
    if config.tokenizer == "char":
        return train_char(document.text for document in corpus.train + corpus.val)
    if not user_path(config.tokenizer).exists():
        raise DataError(
            f"data.tokenizer {config.tokenizer} is none of char, byte, bpe, and there is no such file; name one."
        )
    return Tokenizer.load(config.tokenizer)


def encode_document(tokenizer: Tokenizer, document: Document) -> np.ndarray:
    """The ids of a document, (n_tokens,) uint32. Raises DataError, with file and line,
    for a character that the tokenizer lacks."""
    try:
        return tokenizer.encode_documents([document.text])[0]
    except UnknownCharacter as error:
        raise error.in_file(document.name, document.first_line) from None


def separator_hint(corpus: Corpus) -> list[str]:
    """A remark on documents that contain the usual separator as plain text. Empty if
    there are none."""
    marked = {document.name for document in corpus.train + corpus.val if END_OF_TEXT in document.text}
    if not marked:
        return []
    return [
        f"{END_OF_TEXT} is plain text in {len(marked):,} of the documents, such as {min(marked)}; if it separates "
        f"documents, give --data.separator '{END_OF_TEXT}'"
    ]


def prepare_data(config: DataConfig, run: RunFolder, report: Callable[[str], None]) -> Corpus:
    """Read the corpus, make the tokenizer, write tokenizer.json and
    data/{train,val}.h5. Returns the corpus.

    report: called with a line about each step. Raises DataError when there is too
    little text to train or to validate on.
    """
    report(f"reading {', '.join(config.source)}")
    corpus = load_corpus(config.source, config.val_fraction, separator=config.separator, field=config.field)
    if config.separator is None:
        corpus.remarks.extend(separator_hint(corpus))
    report(f"building the {config.tokenizer} tokenizer from {corpus.train_bytes / 1e6:.1f} MB")
    tokenizer = build_tokenizer(config, corpus)
    tokenizer.save(run.tokenizer)
    for side, path, n_bytes in (
        (corpus.train, run.train_shard, corpus.train_bytes),
        (corpus.val, run.val_shard, corpus.val_bytes),
    ):
        report(f"encoding {n_bytes / 1e6:.1f} MB into {path.name}")
        n_tokens = write_shard(
            path,
            (encode_document(tokenizer, document) for document in side),  # one at a time, to save memory
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            n_bytes=n_bytes,
            tokenizer_sha256=tokenizer.sha256(),
            source_sha256=corpus.sha256,
        )
        if n_tokens < 2:  # one token to predict, and one to predict it from
            raise DataError(
                f"data.source {', '.join(config.source)} leaves fewer than 2 tokens for {path.name}; give more text or "
                "another data.val_fraction."
            )
    return corpus
