"""The tokenizer in a GGUF file: tokens, merges, and the name of the split.

llama.cpp has no regular expressions in its files. A file names one of the splits that
llama.cpp has in its code:

    data.split       tokenizer.ggml.pre
    gpt2             gpt-2
    cl100k, llama3   llama-bpe, which looks up whole pieces; or dbrx, which does not

A tokenizer with another split, or one whose tokens are characters, is refused: its
texts would get other ids there.
"""

from dataclasses import replace
from typing import Any

from npllm.data.prompt_format import PromptFormat
from npllm.errors import ConfigError
from npllm.interop.huggingface import CHAT_TEMPLATE
from npllm.tokenizer import Tokenizer
from npllm.tokenizer.gpt2_files import merges_make_all
from npllm.tokenizer.pretokenize import CL100K_SPLIT, GPT2_SPLIT
from npllm.tokenizer.tokenizer import END_OF_TEXT
from npllm.tokenizer.vocabulary import Vocabulary

NORMAL, CONTROL = 1, 3  # tokenizer.ggml.token_type


def add_vocabulary(writer: Any, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's fields with a `gguf.GGUFWriter`.

    Raises ConfigError for a tokenizer that llama.cpp does not have.
    """
    check_tokenizer(tokenizer, "llama.cpp")
    vocabulary, asked = tokenizer.vocabulary, PromptFormat(tokenizer)
    texts, special = vocabulary.texts(), set(vocabulary.special_tokens.values())
    merges = [f"{texts[left]} {texts[right]}" for left, right in vocabulary.merges]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_name_of_split(vocabulary))
    writer.add_token_list(texts)
    writer.add_token_types([CONTROL if i in special else NORMAL for i in range(len(texts))])
    # llama.cpp wants at least one merge. No piece of a text has a symbol END_OF_TEXT.
    writer.add_token_merges(merges or [f"{END_OF_TEXT} {END_OF_TEXT}"])
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_eos_token_id(asked.stop_id())
    writer.add_eot_token_id(asked.stop_id())  # llama.cpp would take any token that it knows by its text
    writer.add_pad_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(False)
    if asked.is_chat:
        writer.add_chat_template(CHAT_TEMPLATE)


def check_tokenizer(tokenizer: Tokenizer, reader: str) -> None:
    """Raise ConfigError for a tokenizer without the 256 bytes or <|endoftext|>."""
    if not tokenizer.vocabulary.byte_level:
        raise ConfigError(
            f"{reader} has no tokenizers of whole characters, and this model has one; train with --data.tokenizer bpe."
        )
    if tokenizer.eot_id is None:
        raise ConfigError(
            f"{reader} needs a token that ends a text; use a tokenizer with the special token {END_OF_TEXT}."
        )


def _name_of_split(vocabulary: Vocabulary) -> str:
    """The split's name, where llama.cpp makes the same tokens of its pieces."""
    if vocabulary.split_pattern == CL100K_SPLIT:
        return "llama-bpe" if vocabulary.ignore_merges else "dbrx"
    if vocabulary.split_pattern != GPT2_SPLIT:
        raise ConfigError(
            "llama.cpp does not have the split of this tokenizer; train one with --data.split gpt2, cl100k or llama3."
        )
    if vocabulary.ignore_merges and not merges_make_all(replace(vocabulary, ignore_merges=False)):
        raise ConfigError(
            "llama.cpp's split gpt-2 finds tokens only by merges, and this tokenizer has others; use another tokenizer."
        )
    return "gpt-2"
