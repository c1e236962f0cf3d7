"""Hugging Face's tokenizers and OpenAI's tiktoken, both in Rust.

Run it with `python -m benchmarks.peers.tokenizers_worker`.
"""

import json
from pathlib import Path

from benchmarks.peers.serving import fingerprint, serve

END_OF_TEXT = "<|endoftext|>"


def train_bpe(*, texts, vocab_size, library):
    """Learn a byte-level BPE vocabulary. texts: a JSON file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    documents = json.loads(Path(texts).read_text())

    def learn():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(documents, trainer)
        return tokenizer

    tokenizer = learn()
    n_tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents))
    return {"vocab_size": tokenizer.get_vocab_size(), "n_tokens": n_tokens}, learn


def encode(*, texts, tokenizer_json, pattern, library):
    """Load npllm's tokenizer and encode every text.

    pattern: the regular expression that cuts text into pieces.
    """
    documents = json.loads(Path(texts).read_text())
    load = {"tokenizers": load_tokenizers, "tiktoken": load_tiktoken}[library]

    def encode_all():
        return load(tokenizer_json, pattern)(documents)

    return fingerprint(encode_all()), encode_all


def load_tokenizers(path, pattern):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    return lambda documents: [encoding.ids for encoding in tokenizer.encode_batch(documents)]


def load_tiktoken(path, pattern):
    import tiktoken

    vocabulary = json.loads(Path(path).read_text())["model"]["vocab"]
    byte_of = {character: byte for byte, character in byte_characters().items()}
    ranks = {
        bytes(byte_of[character] for character in token): rank
        for token, rank in vocabulary.items()
        if token != END_OF_TEXT
    }
    encoding = tiktoken.Encoding("npllm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary_batch


def byte_characters():
    """Return byte -> its character in a tokenizer.json; a printable byte is its own."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


if __name__ == "__main__":
    serve({"train_bpe": train_bpe, "encode": encode})
