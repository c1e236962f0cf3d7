"""Data preparation: from raw text to token shards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from npllm.data.corpora import Corpus, load_corpus
from npllm.data.documents import PIECE, Document
from npllm.data.shards import write_shard
from npllm.errors import ConfigError, DataError
from npllm.files.user_path import user_path
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import Tokenizer, UnknownCharacter, byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.pretokenize import SPLITS
from npllm.tokenizer.tokenizer import END_OF_TEXT, usable_cores
from npllm.training.config import DataConfig

TOKENIZER_TEXT = 100_000_000  # bytes; of a longer text, a bpe tokenizer is trained on so much
PIECES_FOR_A_CORE = 2  # that are encoded at once: while one thread ends, others have work
Report = Callable[[str], None]  # called with a line about each step


def build_tokenizer(config: DataConfig, corpus: Corpus, report: Report) -> Tokenizer:
    """The tokenizer that the config names: trained on the training text only, or
    loaded.

    A char vocabulary also has the characters of the validation text, which could not be
    encoded without them.
    """
    label = f"building the {config.tokenizer} tokenizer"
    if config.tokenizer == "bpe":
        texts = reported(tokenizer_text(corpus.train), report, label)
        return train_bpe(texts, config.vocab_size, split=config.split)
    if config.tokenizer == "byte":
        return byte_tokenizer()
    if config.tokenizer == "char":
        return train_char(reported(pieces_of(corpus.train + corpus.val), report, label))
    if not user_path(config.tokenizer).exists():
        raise DataError(
            f"data.tokenizer {config.tokenizer} is none of char, byte, bpe, and there is no such file; name one."
        )
    tokenizer = Tokenizer.load(config.tokenizer, split=config.split)
    if config.split != "gpt2" and tokenizer.vocabulary.split_pattern != SPLITS[config.split]:
        raise ConfigError(f"data.split is {config.split!r}, but {config.tokenizer} has another; remove data.split.")
    return tokenizer


def pieces_of(documents: Iterable[Document]) -> Iterator[str]:
    """All texts, piece by piece."""
    return (piece for document in documents for piece in document.content.pieces())


def tokenizer_text(documents: Sequence[Document]) -> Iterator[str]:
    """The pieces of text that a bpe tokenizer is trained on: all, or of a text of more
    than TOKENIZER_TEXT bytes a part that is spread evenly."""
    share = min(1.0, TOKENIZER_TEXT / sum(document.content.n_bytes for document in documents))
    seen = taken = 0  # characters
    for piece in pieces_of(documents):
        seen += len(piece)
        if taken + len(piece) <= seen * share or share == 1.0:
            taken += len(piece)
            yield piece


def reported(pieces: Iterable[str], report: Report, label: str) -> Iterator[str]:
    """The pieces. While they are taken, `report` is told how much is done."""
    done = 0  # characters
    for piece in pieces:
        report(f"{label} ({done / 1e6:.0f} M characters so far)")
        yield piece
        done += len(piece)


class Piece(NamedTuple):
    """A part of a document that is encoded by itself. line: where it starts."""

    index: int
    document: Document
    line: int
    text: str


def encode_document(tokenizer: Tokenizer, document: Document) -> np.ndarray:
    """The ids of one document, (n_tokens,) uint32. Raises DataError as
    `encode_documents` does."""
    return np.concatenate(list(next(encode_documents(tokenizer, [document]))))


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[Document], progress: Callable[[str, int], None] = lambda *_: None
) -> Iterator[Iterator[np.ndarray]]:
    """The ids of each document in parts, (n_tokens of the part,) uint32. The parts of a
    document are taken before the next document.

    Several pieces are encoded at once, by as many threads. progress: called before that
    with the name of the first document and the bytes of the text that are done. Raises
    DataError, with file and line, for a character that the tokenizer lacks.
    """

    def encoded() -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        for batch in _batches(_pieces(tokenizer, documents)):
            progress(batch[0].document.name, done)
            yield from zip((piece.index for piece in batch), _encode_batch(tokenizer, batch), strict=True)
            done += sum(len(piece.text.encode()) for piece in batch)

    return ((ids for _, ids in parts) for _, parts in groupby(encoded(), key=itemgetter(0)))


def _pieces(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[Piece]:
    """The pieces of all documents, at least one of each."""
    for index, document in enumerate(documents):
        line, content = document.first_line, document.content
        for text in content.pieces() if tokenizer.cuts_before_spaces and content.n_bytes else [document.text]:
            yield Piece(index, document, line, text)
            line += text.count("\n")


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The pieces in lists that give all cores work."""
    enough = PIECES_FOR_A_CORE * usable_cores() * PIECE
    batch, n_characters = [], 0
    for piece in pieces:
        batch.append(piece)
        n_characters += len(piece.text)
        if n_characters >= enough:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _encode_batch(tokenizer: Tokenizer, batch: Sequence[Piece]) -> list[np.ndarray]:
    try:
        return tokenizer.encode_documents([piece.text for piece in batch])
    except UnknownCharacter:
        return [_encode_piece(tokenizer, piece) for piece in batch]  # says where it is


def _encode_piece(tokenizer: Tokenizer, piece: Piece) -> np.ndarray:
    try:
        return tokenizer.encode_documents([piece.text])[0]
    except UnknownCharacter as error:
        raise error.in_file(piece.document.name, piece.line) from None


def remarks_on_text(config: DataConfig, corpus: Corpus) -> list[str]:
    """Remarks on documents that contain the usual separator as plain text, and on a
    text of which the tokenizer sees a part."""
    remarks = []
    marked = {
        document.name
        for document in corpus.train + corpus.val
        if config.separator is None and any(END_OF_TEXT in piece for piece in document.content.pieces())
    }
    if marked:
        remarks.append(
            f"{END_OF_TEXT} is plain text in {len(marked):,} of the documents, such as {min(marked)}; if it separates "
            f"documents, give --data.separator '{END_OF_TEXT}'"
        )
    if config.tokenizer == "bpe" and corpus.train_bytes > TOKENIZER_TEXT:
        remarks.append(
            f"the tokenizer is trained on {TOKENIZER_TEXT / 1e6:.0f} of {corpus.train_bytes / 1e6:.0f} MB, which are "
            "spread evenly"
        )
    return remarks


def prepare_data(config: DataConfig, run: RunFolder, report: Report) -> Corpus:
    """Read the corpus, make the tokenizer, write tokenizer.json and
    data/{train,val}.h5. Returns the corpus.

    Neither a large text nor its tokens are in memory as a whole: they are in files
    without names in the folder of the run. Raises DataError when there is too little
    text to train or to validate on.
    """
    corpus = load_corpus(config.source, config.val_fraction, config.reading, folder=run.path, report=report)
    corpus.remarks.extend(remarks_on_text(config, corpus))
    tokenizer = build_tokenizer(config, corpus, report)
    tokenizer.save(run.tokenizer)
    for side, path, n_bytes in (
        (corpus.train, run.train_shard, corpus.train_bytes),
        (corpus.val, run.val_shard, corpus.val_bytes),
    ):

        def progress(name: str, done: int, n_bytes: int = n_bytes) -> None:
            report(f"encoding {name} ({done / 1e6:.0f} of {n_bytes / 1e6:.0f} MB)")

        n_tokens = write_shard(
            path,
            encode_documents(tokenizer, side, progress),
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
