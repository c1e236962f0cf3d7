"""Tokenizers: text to integers and back. Leaf package: uses npllm.errors and nothing else of npllm."""

from npllm.tokenizer.tokenizer import StreamDecoder, Tokenizer
from npllm.tokenizer.training import byte_tokenizer, train_bpe, train_char

__all__ = ["StreamDecoder", "Tokenizer", "byte_tokenizer", "train_bpe", "train_char"]
