"""OpenAI's .tiktoken files: one token per line, as base64, with its rank.

The rank is the id and the order of merging at once: two neighbours merge when the bytes
of both, joined, are a token, the lowest rank first. The file holds neither the split
nor the special tokens. Llama 3's `tokenizer.model` has this format too.

`Vocabulary` has pairs instead. While the merges of all lower ranks have been made, a
token's bytes are in two parts, and these are its pair. A few tokens of Llama 3 are in
more parts then; merging may still reach them later from any two tokens that make them.

Source: https://github.com/openai/tiktoken, the format of its files.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from npllm.errors import DataError
from npllm.tokenizer.byte_table import bytes_to_text
from npllm.tokenizer.vocabulary import Vocabulary, check_vocabulary

MOST_WORK = 1 << 27  # sum of the squares of the tokens' lengths; GPT-4's has a hundredth


def from_tiktoken(content: str, source: str, split_pattern: str, special_tokens: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of a .tiktoken file.

    The special tokens get the lowest free ids, in their order. Raises DataError, which
    names `source`, when the file cannot be used.
    """
    ranks = _read_ranks(content, source)
    taken = set(ranks.values())
    free = (i for i in count() if i not in taken)
    return check_vocabulary(
        source,
        {bytes_to_text(token): rank for token, rank in ranks.items()},
        [tuple(map(bytes_to_text, pair)) for token in sorted(ranks, key=ranks.get) for pair in _pairs(token, ranks)],
        dict(zip(special_tokens, free, strict=False)),
        split_pattern=split_pattern,
        ignore_merges=True,
    )


def _read_ranks(content: str, source: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split(" ")
            token = b64decode(encoded, validate=True)
            if token in ranks or not rank.isdecimal() or len(rank) > 9:
                raise ValueError
        except (ValueError, binascii.Error):
            raise DataError(
                f"{source} line {number} is {line!r:.80}; write a new token as base64, a space and its rank."
            ) from None
        ranks[token] = int(rank)
    if sum(len(token) ** 2 for token in ranks) > MOST_WORK:
        raise DataError(f"{source} has tokens that are too long to find their merges; shorten them.")
    return ranks


def _pairs(token: bytes, ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs whose merge makes a token, when those of lower ranks have been made."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        products = [ranks.get(left + right, ranks[token]) for left, right in zip(parts, parts[1:], strict=False)]
        place = products.index(min(products))
        if products[place] >= ranks[token]:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    if len(parts) == 2:
        yield parts[0], parts[1]
    elif len(parts) > 2:
        cuts = ((token[:place], token[place:]) for place in range(1, len(token)))
        yield from ((left, right) for left, right in cuts if left in ranks and right in ranks)


def to_tiktoken(vocabulary: Vocabulary, path: str) -> bytes:
    """Return the content of a .tiktoken file.

    Raises DataError, which names `path`, for a vocabulary that the format cannot hold:
    its merges are not in the order of the ids.
    """
    ordinary = sorted(vocabulary.ordinary_ids().items(), key=lambda item: item[1])
    content = "".join(f"{b64encode(token).decode()} {i}\n" for token, i in ordinary)
    if vocabulary.byte_level:
        made = from_tiktoken(content, path, vocabulary.split_pattern, tuple(vocabulary.special_tokens))
        if (made.tokens, made.merges) == (vocabulary.tokens, vocabulary.merges):
            return content.encode()
    raise DataError(
        f"{path} cannot hold this tokenizer, whose merges are not in the order of its ids; save a tokenizer.json."
    )
