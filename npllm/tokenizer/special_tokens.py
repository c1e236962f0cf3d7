"""Adds special tokens to a tokenizer."""

from collections.abc import Iterable
from dataclasses import replace

from npllm.errors import ConfigError
from npllm.tokenizer.pretokenize import refuse_lone_surrogates
from npllm.tokenizer.tokenizer import Tokenizer


def with_special_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer with these special tokens added.

    Tokens that it has already stay as they are.

    The new ids follow the old ones in the order of the texts. So every old id keeps its
    meaning, and an embedding needs new rows only at its end. Raises ConfigError for an
    empty text and for one that equals an ordinary token's text in tokenizer.json, and
    DataError for a lone surrogate.
    """
    vocabulary = tokenizer.vocabulary
    new = [text for text in dict.fromkeys(texts) if text not in vocabulary.special_tokens]
    ordinary = set(vocabulary.texts())
    for text in new:
        refuse_lone_surrogates(text)
        if not text or text in ordinary:
            what = "how an ordinary token is written" if text else "empty"
            raise ConfigError(f"the special token {text!r:.80} is {what}; choose a text like '<|name|>'.")
    ids = {text: tokenizer.vocab_size + place for place, text in enumerate(new)}
    return Tokenizer(
        replace(
            vocabulary,
            tokens=(*vocabulary.tokens, *(text.encode("utf-8") for text in new)),
            special_tokens={**vocabulary.special_tokens, **ids},
        )
    )
