"""The windows of held-out text in which a model's inside is measured."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from npllm.data.sampler import batch
from npllm.data.shards import TokenShard
from npllm.model import ModelConfig
from npllm.pages.learnt.labels import UNKNOWN, indentation, inside_quotes, is_python, last_bytes
from npllm.tokenizer import Tokenizer

LONGEST = 128  # tokens
MOST_WINDOWS = 48
FEWEST_WINDOWS = 6
MOST_NUMBERS = 1 << 23  # of the residual streams that are kept


class HeldOut(NamedTuple):
    """Tokens of documents, one after another. starts: their first tokens."""

    tokens: np.ndarray  # (n,)
    starts: np.ndarray  # (documents,)


def of_shard(shard: TokenShard) -> HeldOut:
    """The documents of a token shard."""
    return HeldOut(shard.tokens, shard.document_starts)


def of_sequences(sequences: Sequence[Sequence[int]]) -> HeldOut:
    """Sequences of token ids as documents."""
    lengths = [len(each) for each in sequences]
    tokens = np.array([id for each in sequences for id in each], np.int64)
    return HeldOut(tokens, np.cumsum([0, *lengths[:-1]]))


class Windows:
    """Windows that are spread evenly over a text.

    x: (B, T), the tokens that the model reads. y: (B, T), the next tokens. pieces: the
    bytes of each token of the vocabulary. quoted, indentation: (B, T), the labels of
    the tokens of x, UNKNOWN where a token has none. The first two thirds of the windows
    teach a probe and the others test it.
    """

    def __init__(self, text: HeldOut, tokenizer: Tokenizer, config: ModelConfig):
        self.text, self.tokenizer = text, tokenizer
        length = max(1, min(LONGEST, config.block_size, len(text.tokens) - 1))
        per_window = (config.n_layer + 1) * length * config.n_embd
        count = min(max(MOST_NUMBERS // per_window, FEWEST_WINDOWS), MOST_WINDOWS)
        last = len(text.tokens) - 1 - length
        # Windows that overlap would show a probe's test in its training.
        count = max(1, min(count, last // length + 1))
        self.positions = np.unique(np.linspace(0, last, count).astype(np.int64))
        self.x, self.y = batch(text.tokens, self.positions, length)
        self.pieces = [tokenizer.decode_bytes([id]) for id in range(tokenizer.vocab_size)]
        self._labelled: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def n_train(self) -> int:
        """The number of windows that teach a probe."""
        return 2 * len(self.x) // 3

    @cached_property
    def quoted(self) -> np.ndarray:
        return self._gather(0)

    @cached_property
    def indentation(self) -> np.ndarray:
        return self._gather(1)

    def snippet(self, row: int, before: int = 8, after: int = 4) -> tuple[str, str, str]:
        """The text around a position: before it, its token, and after it.

        row: the number of the position in x, window after window.
        """
        window, at = divmod(row, self.x.shape[1])
        ids = self.x[window]
        return tuple(
            self._text(part) for part in (ids[max(0, at - before) : at], ids[at : at + 1], ids[at + 1 :][:after])
        )

    def _text(self, ids: np.ndarray) -> str:
        return b"".join(self.pieces[id] for id in ids).decode("utf-8", errors="replace")

    def _gather(self, which: int) -> np.ndarray:
        """A label of each token of x, (B, T)."""
        columns = np.arange(self.x.shape[1])
        labels = np.full(self.x.shape, UNKNOWN)
        for row, position in enumerate(self.positions):
            places = position + columns
            documents = np.searchsorted(self.text.starts, places, side="right") - 1
            for document in np.unique(documents):
                here = documents == document
                of_document = self._labels_of(int(document))[which]
                labels[row, here] = of_document[places[here] - self.text.starts[document]]
        return labels

    def _labels_of(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Both labels of each token of a document, (n,)."""
        if document not in self._labelled:
            first = self.text.starts[document]
            end = self.text.starts[document + 1] if document + 1 < len(self.text.starts) else len(self.text.tokens)
            self._labelled[document] = document_labels(self.text.tokens[first:end], self.pieces, self.tokenizer)
        return self._labelled[document]


def document_labels(ids: np.ndarray, pieces: Sequence[bytes], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token of a document ends in a string or a comment, 0 or 1, and the
    indentation of its line; both (n,), and UNKNOWN for special tokens. The first is
    UNKNOWN in a document that is not Python."""
    special = np.isin(ids, list(tokenizer.special_tokens.values()))
    of_tokens = [b"" if is_special else pieces[id] for id, is_special in zip(ids, special, strict=True)]
    source, ends = b"".join(of_tokens), np.maximum(last_bytes(of_tokens), 0)
    quoted, levels = np.full(len(ids), UNKNOWN), np.full(len(ids), UNKNOWN)
    if source:
        levels = np.where(special, UNKNOWN, indentation(source)[ends])
    if is_python(source):
        quoted = np.where(special, UNKNOWN, inside_quotes(source)[ends].astype(np.int64))
    return quoted, levels
