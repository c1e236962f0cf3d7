"""Special tokens added to a tokenizer that exists."""

import pytest

from npllm.errors import ConfigError, DataError
from npllm.tokenizer import Tokenizer, byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.special_tokens import with_special_tokens

TEXT = "the cat's hat, the other cat's mat <|a|> été\n" * 3

TOKENIZERS = {
    "bpe": train_bpe([TEXT], 278, special_tokens=("<|endoftext|>", "<|b|>")),
    "byte": byte_tokenizer(),
    "byte without": byte_tokenizer(special_tokens=()),
    "char": train_char([TEXT]),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_new_ids_follow_the_old_ones_and_nothing_else_changes(tokenizer, tmp_path):
    V = tokenizer.vocab_size
    made = with_special_tokens(tokenizer, ["<|z|>", "<|a|>"])
    assert made.special_tokens == {**tokenizer.special_tokens, "<|z|>": V, "<|a|>": V + 1}
    assert made.vocab_size == V + 2
    assert made.kind == tokenizer.kind
    assert made.eot_id == tokenizer.eot_id
    assert made.encode(TEXT) == tokenizer.encode(TEXT)
    assert made.decode(range(V)) == tokenizer.decode(range(V))
    assert made.decode([V, V + 1]) == "<|z|><|a|>"
    assert made.encode("the <|a|>", allowed_special=True) == [*tokenizer.encode("the "), V + 1]
    made.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocabulary == made.vocabulary
    assert loaded.sha256() == made.sha256() != tokenizer.sha256()


def test_tokens_that_are_there_are_left_alone():
    old = TOKENIZERS["bpe"]
    made = with_special_tokens(old, ["<|b|>", "<|a|>", "<|endoftext|>", "<|a|>"])
    assert made.special_tokens == {"<|endoftext|>": 276, "<|b|>": 277, "<|a|>": 278}
    assert with_special_tokens(made, ["<|a|>", "<|b|>"]).sha256() == made.sha256()
    assert old.special_tokens == {"<|endoftext|>": 276, "<|b|>": 277}


def test_texts_that_cannot_be_special_tokens():
    with pytest.raises(ConfigError, match=r"the special token '' is empty; choose a text like '<\|name\|>'"):
        with_special_tokens(byte_tokenizer(), [""])
    for kind, text in (("byte", "a"), ("bpe", "Ġthe"), ("char", "é")):
        with pytest.raises(
            ConfigError, match=f"the special token '{text}' is how an ordinary token is written; choose"
        ):
            with_special_tokens(TOKENIZERS[kind], [text])
    with pytest.raises(DataError, match="lone surrogate"):
        with_special_tokens(byte_tokenizer(), ["\ud800"])
