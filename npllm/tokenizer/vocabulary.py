"""Everything that determines the ids of a tokenizer, as one checked record."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import regex

from npllm.errors import DataError
from npllm.tokenizer.byte_table import BYTE_TO_CHARACTER, bytes_to_text, text_to_bytes
from npllm.tokenizer.pretokenize import GPT2_SPLIT, Splitter

MOST_SPECIAL_CHARACTERS = 1 << 17  # each place of a text is compared with all; Gemma's 6,000 tokens have 75,000


@dataclass(frozen=True)
class Vocabulary:
    """The content of tokenizer.json.

    tokens[id] is the token's bytes in the text (V tokens). A byte-level vocabulary has
    all 256 bytes among them. Any other has one token per character, and no merges.
    merges[rank] = (left id, right id); the product is the token whose bytes are those
    of both, joined. ignore_merges: a piece that is itself a token gets its id without
    merging. For a vocabulary made by byte-pair training, the ids are the same either
    way.
    """

    tokens: tuple[bytes, ...]
    special_tokens: dict[str, int]
    byte_level: bool = True
    merges: tuple[tuple[int, int], ...] = ()
    split_pattern: str = GPT2_SPLIT
    ignore_merges: bool = False

    @property
    def kind(self) -> str:
        """Return "char", "byte" or "bpe" (bytes and their merges)."""
        if not self.byte_level:
            return "char"
        return "byte" if len(self.tokens) == 256 + len(self.special_tokens) else "bpe"

    def ordinary_ids(self) -> dict[bytes, int]:
        """Return bytes -> id for every token that is not special."""
        special = set(self.special_tokens.values())
        return {token: i for i, token in enumerate(self.tokens) if i not in special}

    def texts(self) -> list[str]:
        """Return id -> the text that stands for the token in JSON."""
        special = set(self.special_tokens.values())
        return [
            bytes_to_text(token) if self.byte_level and i not in special else token.decode("utf-8")
            for i, token in enumerate(self.tokens)
        ]


def check_vocabulary(
    source: str,
    ids: Mapping[str, object],
    merges: Iterable[tuple[str, str]],
    special_tokens: Mapping[str, int],
    *,
    byte_level: bool = True,
    split_pattern: str = GPT2_SPLIT,
    ignore_merges: bool = False,
) -> Vocabulary:
    """Build a Vocabulary from the texts in JSON.

    ids: text -> id, with or without the special tokens. merges: (left text, right text)
    by rank. Raises DataError, which names `source`, when something is wrong.
    """
    if sum(map(len, special_tokens)) > MOST_SPECIAL_CHARACTERS:
        raise DataError(
            f"{source} has special tokens of more than {MOST_SPECIAL_CHARACTERS:,} characters together; remove some."
        )
    for text, i in special_tokens.items():
        if ids.get(text, i) != i:
            raise DataError(
                f"{source} gives the special token {text!r:.80} two ids, {ids[text]!r:.80} and {i}; keep one."
            )
    all_ids = {**ids, **special_tokens}
    _check_ids(source, all_ids)
    tokens = [b""] * len(all_ids)
    for text, i in all_ids.items():
        tokens[i] = _token_bytes(source, text, byte_level and text not in special_tokens)
    ordinary = {text: i for text, i in all_ids.items() if text not in special_tokens}
    if byte_level:
        _check_bytes(source, ordinary)
    else:
        _check_characters(source, ordinary)
    try:
        Splitter(split_pattern)
    except (regex.error, ValueError, RecursionError) as error:
        raise DataError(f"{source} has a split pattern that cannot be used ({error}); correct it.") from None
    return Vocabulary(
        tokens=tuple(tokens),
        special_tokens=dict(sorted(special_tokens.items(), key=lambda item: item[1])),
        byte_level=byte_level,
        merges=_merge_ids(source, merges, ordinary),
        split_pattern=split_pattern,
        ignore_merges=ignore_merges,
    )


def _check_ids(source: str, ids: Mapping[str, object]) -> None:
    """The ids must be 0 ...

    V - 1, each once, because they are rows of the embedding.
    """
    seen: dict[int, str] = {}
    for text, i in ids.items():
        if type(i) is not int or i < 0:
            raise DataError(f"{source} gives the token {text!r:.80} the id {i!r:.80}; write an integer from 0 up.")
        if i in seen:
            raise DataError(f"{source} gives {seen[i]!r:.80} and {text!r:.80} the same id {i}; give each its own.")
        seen[i] = text
    if not seen:
        raise DataError(f"{source} has no tokens; save or download it again.")
    missing = next((i for i in range(len(seen)) if i not in seen), None)
    if missing is not None:
        raise DataError(f"{source} has no token with id {missing}; number the tokens without gaps.")


def _token_bytes(source: str, text: str, byte_level: bool) -> bytes:
    try:
        token = text_to_bytes(text) if byte_level else text.encode("utf-8")
    except KeyError as error:
        raise DataError(
            f"{source} has the token {text!r:.80}, whose character {error.args[0]!r} stands for no byte; "
            "only byte-level vocabularies are supported."
        ) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{source} has the token {text!r:.80} with a lone surrogate; save or download it again."
        ) from None
    if not token:
        raise DataError(f"{source} has an empty token; remove it.")
    return token


def _check_bytes(source: str, ordinary: Mapping[str, int]) -> None:
    missing = [byte for byte, character in BYTE_TO_CHARACTER.items() if character not in ordinary]
    if missing:
        raise DataError(
            f"{source} has no token for the byte 0x{missing[0]:02X}; train again with all 256 bytes in the vocabulary."
        )


def _check_characters(source: str, ordinary: Mapping[str, int]) -> None:
    for text in ordinary:
        if len(text) != 1:
            raise DataError(
                f"{source} has the token {text!r:.80}, which is not one character; add the merges that make it."
            )


def _merge_ids(
    source: str, merges: Iterable[tuple[str, str]], ordinary: Mapping[str, int]
) -> tuple[tuple[int, int], ...]:
    pairs: dict[tuple[int, int], None] = {}
    for left, right in merges:
        for text in (left, right, left + right):
            if text not in ordinary:
                raise DataError(
                    f"{source} merges {left!r:.80} and {right!r:.80}, but {text!r:.80} is not in the vocabulary; "
                    "take vocabulary and merges from the same tokenizer."
                )
        pair = ordinary[left], ordinary[right]
        if pair in pairs:
            raise DataError(f"{source} lists the merge of {left!r:.80} and {right!r:.80} twice; remove one of them.")
        pairs[pair] = None
    return tuple(pairs)
