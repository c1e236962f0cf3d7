"""Makes a new tokenizer of one of three kinds.

char   the distinct characters of a text; encodes only texts of these characters
byte   the 256 bytes; encodes any text, needs no training
bpe    bytes and the merges learnt from a text; encodes any text, with a third or a
       quarter as many tokens as bytes
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from npllm.errors import ConfigError, DataError
from npllm.tokenizer import fast_path
from npllm.tokenizer.bpe_training import Pair, learn_merges
from npllm.tokenizer.byte_table import ID_TO_BYTE
from npllm.tokenizer.pretokenize import GPT2_SPLIT, SpecialSplitter, Splitter, refuse_lone_surrogates, split_pattern
from npllm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from npllm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from npllm.tokenizer.fast_training import CompiledCounter


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,), split: str = "gpt2"
) -> Tokenizer:
    """Learn a byte-level BPE tokenizer with exactly vocab_size entries from documents.

    split: how text is cut into pieces: "gpt2", "cl100k" or "llama3" (pretokenize.py).
    Ids: the 256 bytes in GPT-2's order, the merges in the order learnt, the special
    tokens in the order given. Special tokens in the texts are cut out first, so no
    merge includes a part of one. The result depends only on the counts of the pieces,
    not on the order of the documents. Raises ConfigError when vocab_size is too small,
    or larger than the texts can fill, and DataError for a lone surrogate.
    """
    pattern = split_pattern(split)
    n_merges = vocab_size - 256 - len(special_tokens)
    if n_merges < 0:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but the bytes and special tokens alone are {256 + len(special_tokens)}; "
            "set it to at least that."
        )
    _check_special_tokens(special_tokens)
    piece_counts = count_pieces(texts, special_tokens, pattern)
    merges = _learner(piece_counts, pattern)(piece_counts, n_merges)
    if len(merges) < n_merges:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but the training text fills only {vocab_size - n_merges + len(merges)} "
            "entries; set it to at most that, or train on more text."
        )
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    # Merging the bytes of a trained token gives this token. So looking up whole pieces
    # (ignore_merges) gives the same ids and saves time.
    return _byte_level_tokenizer(tokens, merges, special_tokens, pattern, ignore_merges=True)


def byte_tokenizer(special_tokens: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
    """Return the tokenizer whose tokens are the 256 bytes and the special tokens.

    The bytes are in GPT-2's order.
    """
    _check_special_tokens(special_tokens)
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]
    return _byte_level_tokenizer(tokens, [], special_tokens, GPT2_SPLIT, ignore_merges=False)


def train_char(texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer whose tokens are the distinct characters of texts, sorted.

    It has no special tokens. Raises DataError when there are no characters, and for a
    lone surrogate.
    """
    characters: set[str] = set()
    for text in texts:
        refuse_lone_surrogates(text)
        characters.update(text)
    if not characters:
        raise DataError("the training text is empty; give a text with at least one character.")
    tokens = tuple(character.encode("utf-8") for character in sorted(characters))
    return Tokenizer(Vocabulary(tokens, special_tokens={}, byte_level=False))


def count_pieces(texts: Iterable[str], special_tokens: Sequence[str], pattern: str = GPT2_SPLIT) -> dict[bytes, int]:
    """Return how often each distinct piece occurs in the texts.

    Special tokens are left out. pattern: the regular expression that cuts text into
    pieces.
    """
    special_splitter, splitter = SpecialSplitter(special_tokens), Splitter(pattern)
    plain: Counter[str] = Counter()
    compiled = None  # the counter of large texts
    for text in texts:
        refuse_lone_surrogates(text)
        for part, is_special in special_splitter.parts(text):
            if is_special:
                continue
            if fast_path.pays(len(part), pattern):
                compiled = compiled or _compiled_counter(pattern)
                compiled.count(part.encode("utf-8"))
            else:
                plain.update(splitter.pieces(part))
    counts = Counter({piece.encode("utf-8"): count for piece, count in plain.items()})
    if compiled:
        counts.update(compiled.counts())
    return counts


def _compiled_counter(pattern: str) -> "CompiledCounter":
    from npllm.tokenizer.fast_training import CompiledCounter  # imports Numba

    return CompiledCounter(pattern)


def _learner(piece_counts: Mapping[bytes, int], pattern: str) -> Callable[[Mapping[bytes, int], int], list[Pair]]:
    """The plain or the compiled function that learns merges."""
    if not fast_path.pays(sum(map(len, piece_counts)), pattern):
        return learn_merges
    from npllm.tokenizer.fast_training import learn_merges_compiled  # imports Numba

    return learn_merges_compiled


def _byte_level_tokenizer(
    tokens: list[bytes],
    merges: list[tuple[int, int]],
    special_tokens: Sequence[str],
    pattern: str,
    ignore_merges: bool,
) -> Tokenizer:
    ids = {text: len(tokens) + place for place, text in enumerate(special_tokens)}
    all_tokens = (*tokens, *(text.encode("utf-8") for text in special_tokens))
    vocabulary = Vocabulary(all_tokens, ids, merges=tuple(merges), split_pattern=pattern, ignore_merges=ignore_merges)
    ordinary_texts = set(vocabulary.texts()[: len(tokens)])
    for text in special_tokens:
        if text in ordinary_texts:  # both would be the same key in tokenizer.json
            raise ConfigError(
                f"special_tokens has {text!r}, as an ordinary token is written; choose a text like '<|name|>'."
            )
    return Tokenizer(vocabulary)


def _check_special_tokens(special_tokens: Sequence[str]) -> None:
    if len(set(special_tokens)) < len(special_tokens):
        raise ConfigError(f"special_tokens {list(special_tokens)} has one twice; remove it.")
    for text in special_tokens:
        refuse_lone_surrogates(text)
        if not text:
            raise ConfigError("special_tokens has an empty text; remove it.")
