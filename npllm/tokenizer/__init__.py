"""Tokenizers: text to integers and back.

Of npllm, this package imports only `errors` and `files`; its kernels, which are loaded
for large texts, import `kernels.jit`.
"""

from npllm.tokenizer.table_encoding import UnknownCharacter
from npllm.tokenizer.tokenizer import StreamDecoder, Tokenizer
from npllm.tokenizer.training import byte_tokenizer, train_bpe, train_char

__all__ = ["StreamDecoder", "Tokenizer", "UnknownCharacter", "byte_tokenizer", "train_bpe", "train_char"]
