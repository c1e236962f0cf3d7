"""The tokenizer class: text to ids and back, for every kind of vocabulary."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike

import numpy as np

from npllm.errors import DataError
from npllm.tokenizer import files
from npllm.tokenizer.bpe_encoding import BytePairEncoder
from npllm.tokenizer.pretokenize import SPLITS, SpecialSplitter, refuse_lone_surrogates
from npllm.tokenizer.table_encoding import ByteEncoder, CharacterEncoder
from npllm.tokenizer.tokenizer_json import to_json
from npllm.tokenizer.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"
WORTH_THREADS = 1 << 18  # characters in all texts but the first
DECODED_AT_ONCE = 1 << 16  # ids; a list of Python's integers takes 40 bytes for each

ENCODERS = {"bpe": BytePairEncoder, "byte": ByteEncoder, "char": CharacterEncoder}


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Tokenizer:
    """Text to token ids and back.

    Make one with train_bpe, byte_tokenizer, train_char or Tokenizer.load. kind: "bpe",
    "byte" or "char". vocab_size: V; ids are 0 ... V - 1. special_tokens: text -> id.
    eot_id: the id of <|endoftext|>, or None in a tokenizer without it.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.kind = vocabulary.kind
        self.vocab_size = len(vocabulary.tokens)
        self.special_tokens = dict(vocabulary.special_tokens)
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self._encoder = ENCODERS[self.kind](vocabulary)
        self._special_splitter = SpecialSplitter(self.special_tokens)

    @property
    def cuts_before_spaces(self) -> bool:
        """Whether no token has a blank after a sign, or a newline after a letter.

        Then parts of a text that start with such a blank or newline can be encoded one
        by one.
        """
        return self.vocabulary.split_pattern in SPLITS.values()

    def encode(self, text: str, *, allowed_special: bool = False) -> list[int]:
        """Return the ids of a text. Nothing is added at its beginning or end.

        With allowed_special, the text of a special token becomes its id. Without it,
        such a text is encoded like any other, so a user's text can never end a
        document. Raises DataError for a lone surrogate and, if the kind is "char", for
        a character that is not in the vocabulary.
        """
        refuse_lone_surrogates(text)
        if not allowed_special:
            return self._encoder.encode(text).tolist()
        ids: list[int] = []
        for part, is_special in self._special_splitter.parts(text):
            ids += [self.special_tokens[part]] if is_special else self._encoder.encode(part).tolist()
        return ids

    def encode_documents(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Return the ids of each text, (tokens,) uint32, for whole corpora.

        They are those of `encode` without special tokens. Many texts are divided
        between threads, which only the compiled loops of large texts use fully.
        """
        texts = list(texts)
        if sum(map(len, texts[1:])) < WORTH_THREADS:
            return list(map(self._encode_document, texts))
        with ThreadPoolExecutor(usable_cores()) as pool:
            return list(pool.map(self._encode_document, texts))

    def _encode_document(self, text: str) -> np.ndarray:
        refuse_lone_surrogates(text)
        return self._encoder.encode(text)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the exact bytes of ids, (n,); a special token gives its text.

        Raises DataError for an unknown id.
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
        unknown = ids[(ids < 0) | (ids >= self.vocab_size)]
        if unknown.size:
            raise DataError(
                f"there is no token with id {unknown[0]}, only with 0 to {self.vocab_size - 1}; "
                "use the tokenizer that made the ids."
            )
        parts = (ids[start : start + DECODED_AT_ONCE].tolist() for start in range(0, len(ids), DECODED_AT_ONCE))
        return b"".join(b"".join(map(self.vocabulary.tokens.__getitem__, part)) for part in parts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, (n,).

        Bytes that are not UTF-8, for example of a cut character, become U+FFFD.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream_decoder(self) -> "StreamDecoder":
        """Return a decoder that takes one id at a time."""
        return StreamDecoder(self)

    def sha256(self) -> str:
        """Return the hex digest of the file that `save` writes.

        Tokenizers with equal digests encode every text to equal ids.
        """
        return hashlib.sha256(to_json(self.vocabulary)).hexdigest()

    def save(self, path: str | PathLike) -> None:
        """Write a Hugging Face tokenizer.json to this path, or into it if it is a
        folder.

        A path that ends in .tiktoken gets a file of that format, and vocab.json gets
        GPT-2's, with merges.txt beside it. Raises DataError for a tokenizer that such
        a file cannot hold.
        """
        files.write(self.vocabulary, path)

    @classmethod
    def load(
        cls, path: str | PathLike, *, split: str | None = None, special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> "Tokenizer":
        """Read tokenizer.json, or a folder that holds it, or a .tiktoken file.

        The folder may also hold vocab.json and merges.txt, or encoder.json and
        vocab.bpe. A .tiktoken file lacks the split ("gpt2", "cl100k" or "llama3") and
        the special tokens, which get its lowest free ids. Everything in tokenizer.json
        that decides the ids of plain text is read. The post-processor, truncation and
        padding are not read, because `encode` adds nothing. Raises DataError that says
        what is missing, corrupt or unsupported.
        """
        return cls(files.read(path, split, special_tokens))


class StreamDecoder:
    """Decodes ids one by one and never returns an incomplete character.

    A token of a byte-level tokenizer may end inside a character. Its bytes wait for
    those of the next token, and are lost if none follows. Apart from these, the joined
    results of push equal Tokenizer.decode of all ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: int | Sequence[int]) -> str:
        """Return the text that one id, or several, completes.

        It is often "" inside a character.
        """
        return self._utf8.decode(self._tokenizer.decode_bytes(np.atleast_1d(ids)))
