"""GPT-2's own two files: JSON with token -> id, and text with one merge per line.

They are called encoder.json and vocab.bpe in OpenAI's release, vocab.json and
merges.txt in Hugging Face folders. The first line of the merges is "#version: 0.2",
which is not a merge, and the last line is empty.
"""

import json
from dataclasses import replace

from npllm.errors import DataError
from npllm.tokenizer.bpe_encoding import BytePairEncoder
from npllm.tokenizer.vocabulary import Vocabulary, check_vocabulary


def from_gpt2_files(ids: object, merges_text: str, vocabulary_source: str, merges_source: str) -> Vocabulary:
    """Return the vocabulary of a parsed vocab.json and the text of merges.txt.

    These files do not mark special tokens. Special tokens are the entries that are
    neither a byte nor the product of a merge; they must be written in angle brackets,
    like <|endoftext|>. Raises DataError when the files cannot be used.
    """
    if not isinstance(ids, dict):
        raise DataError(f"{vocabulary_source} is not a JSON object of tokens and ids; save or download it again.")
    merges = read_merges(merges_text, merges_source)
    products = {left + right for left, right in merges}
    special_tokens = {text: i for text, i in ids.items() if len(text) != 1 and text not in products}
    for text in special_tokens:
        if not (text.startswith("<") and text.endswith(">")):
            raise DataError(
                f"{vocabulary_source} has the token {text!r:.80}, which no merge in {merges_source} makes; "
                "take both files from the same byte-level tokenizer."
            )
    return check_vocabulary(f"{vocabulary_source} with {merges_source}", ids, merges, special_tokens)


def to_gpt2_files(vocabulary: Vocabulary, path: str) -> tuple[bytes, bytes]:
    """Return the contents of vocab.json and merges.txt.

    Raises DataError, which names `path`, for a vocabulary that they cannot hold: with
    another split than GPT-2's, tokens that no merge makes, or special tokens without
    angle brackets.
    """
    texts = vocabulary.texts()
    ids = {text: i for i, text in enumerate(texts)}
    merges = "".join(f"{texts[left]} {texts[right]}\n" for left, right in vocabulary.merges)
    try:
        made = from_gpt2_files(ids, merges, path, path)
    except DataError:
        made = None
    if made != replace(vocabulary, ignore_merges=False) or not merges_make_all(made):
        raise DataError(
            f"{path} and merges.txt cannot hold this tokenizer (they are for GPT-2's split, tokens made by merges, and "
            "special tokens like <|name|>); save a tokenizer.json."
        )
    return (json.dumps(ids, ensure_ascii=False) + "\n").encode(), ("#version: 0.2\n" + merges).encode()


def merges_make_all(vocabulary: Vocabulary) -> bool:
    """Whether each token is what merging its bytes gives."""
    encoder = BytePairEncoder(vocabulary)
    return all(encoder.encode_piece(token) == [i] for token, i in vocabulary.ordinary_ids().items())


def read_merges(text: str, source: str) -> list[tuple[str, str]]:
    """Return the merges by rank.

    Raises DataError with the number of a line that is not two tokens.
    """
    merges = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise DataError(f"{source} line {number} is {line!r:.80}; write two tokens with one space between.")
        merges.append((parts[0], parts[1]))
    return merges
