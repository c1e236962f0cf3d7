"""The verbs about tokenizers, in the form of `npllm/verbs.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from npllm.errors import DataError
from npllm.files.standard_input import standard_input
from npllm.output import one_line, show


def tokenizer_train(
    source: Positional[tuple[str, ...]],
    *,
    out: Path,
    vocab_size: int = 2048,
    split: Literal["gpt2", "cl100k", "llama3"] = "gpt2",
    field: str | None = None,
) -> None:
    """Train a byte-level BPE tokenizer.

    Args:
        source: stdlib, pydoc, or files, folders and glob patterns
        out: tokenizer.json, vocab.json (with merges.txt) or *.tiktoken to write
        vocab_size: number of tokens
        split: how text is cut into pieces before byte pairs are merged
        field: key of .jsonl lines, or column of .csv files, that holds the text
    """
    from npllm.data.corpora import load_corpus
    from npllm.data.sources import ReadingOptions
    from npllm.tokenizer import train_bpe
    from npllm.training.prepare import tokenizer_text

    corpus = load_corpus(source, options=ReadingOptions(field=field))
    train_bpe(tokenizer_text(corpus.train + corpus.val), vocab_size, split=split).save(out)
    for line in corpus.remarks:
        show(one_line(line))
    show(one_line(f"{out}: {vocab_size} tokens from {(corpus.train_bytes + corpus.val_bytes) / 1e6:.1f} MB"))


def tokenizer_encode(tokenizer: Positional[Path], text: Positional[str | None] = None) -> None:
    """Print the token ids of a text.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        text: the text; without it, standard input
    """
    from npllm.tokenizer import Tokenizer

    print(*Tokenizer.load(tokenizer).encode(standard_input() if text is None else text))


def tokenizer_decode(tokenizer: Positional[Path], ids: Positional[tuple[int, ...]] = ()) -> None:
    """Print the text of token ids.

    Args:
        tokenizer: tokenizer.json or a folder with one, such as a run
        ids: the ids; without them, standard input
    """
    from npllm.tokenizer import Tokenizer

    try:
        numbers = list(ids) or [int(word) for word in standard_input().split()]
    except ValueError as error:
        raise DataError(f"Standard input holds no token ids ({error}); give whole numbers between spaces.") from error
    show(Tokenizer.load(tokenizer).decode(numbers))


TOKENIZER_VERBS: dict[str, Callable[..., None]] = {
    "tokenizer train": tokenizer_train,
    "tokenizer encode": tokenizer_encode,
    "tokenizer decode": tokenizer_decode,
}
