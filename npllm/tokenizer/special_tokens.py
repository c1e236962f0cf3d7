"""More special tokens for a tokenizer that exists."""

from collections.abc import Iterable
from dataclasses import replace

from npllm.errors import ConfigError
from npllm.tokenizer.pretokenize import refuse_lone_surrogates
from npllm.tokenizer.tokenizer import Tokenizer


def with_special_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer with special tokens of these texts too; those it has already are left alone.

    The new ids follow the old ones in the order of the texts, so every old id keeps its meaning, and an embedding needs
    rows at its end only. Raises ConfigError for an empty text and for one that is how an ordinary token is written in
    tokenizer.json; DataError for a lone surrogate.
    """
    vocabulary = tokenizer.vocabulary
    new = [text for text in dict.fromkeys(texts) if text not in vocabulary.special_tokens]
    ordinary = set(vocabulary.texts())
    for text in new:
        refuse_lone_surrogates(text)
        if not text or text in ordinary:
            what = "how an ordinary token is written" if text else "empty"
            raise ConfigError(f"the special token {text!r:.80} is {what}: choose a text like '<|name|>'.")
    ids = {text: tokenizer.vocab_size + place for place, text in enumerate(new)}
    return Tokenizer(
        replace(
            vocabulary,
            tokens=(*vocabulary.tokens, *(text.encode("utf-8") for text in new)),
            special_tokens={**vocabulary.special_tokens, **ids},
        )
    )
