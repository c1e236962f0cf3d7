"""Which records fit a model, and how longer prompts are shortened."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data.chat import encode_conversation
from npllm.data.fitting import Room, fit, shortened
from npllm.data.prompt_format import CHAT_TOKENS, PromptFormat
from npllm.data.record_file import RecordFile
from npllm.data.records import Conversation, Demonstration, Message, Preference
from npllm.tokenizer import byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.special_tokens import with_special_tokens

BYTES = byte_tokenizer()
CHAT = with_special_tokens(BYTES, CHAT_TOKENS)
WORDS = train_bpe(["the cat sat on the mat, the cat ran; naïve 東京 " * 9], 280)


def file_of(*records) -> RecordFile:
    return RecordFile(Path("some.jsonl"), list(records), [f"line {i}" for i in range(1, len(records) + 1)], [])


def test_a_record_is_as_long_as_its_prompt_and_its_longer_response():
    """The stop token counts too. Here the record has 9 tokens."""
    records = [Preference("abc", "defgh", "d"), Preference("abc", "d", "defgh"), Demonstration("abc", "defgh")]
    assert fit(file_of(*records), BYTES, Room(9, "room"), shorten=False).records == records
    found = fit(file_of(*records), BYTES, Room(8, "model.block_size"), shorten=False)
    assert found.records == []
    sentence = "it has 9 tokens, more than model.block_size = 8; shorten or remove it, or use a model with a larger"
    assert [(bad.place, bad.kind) for bad in found.bad] == [(f"line {i}", "too long") for i in (1, 2, 3)]
    assert found.bad[0].complaint.startswith(sentence)


def test_the_end_of_a_prompt_is_kept_and_every_response_whole():
    records = [Preference("abcdef", "gh", "ijk"), Demonstration("abcdef", "ghi"), "abcdefgh"]
    found = fit(file_of(*records), BYTES, Room(6, "room"), shorten=True)
    assert found.records == [Preference("ef", "gh", "ijk"), Demonstration("ef", "ghi"), "cdefgh"]
    assert found.bad == []


def test_a_response_without_room_stays_bad():
    """An empty prompt is one token, the end of text."""
    fitting, bad = Demonstration("abc", "defgh"), Demonstration("", "abcdefg")
    found = fit(file_of(bad, fitting), BYTES, Room(7, "room"), shorten=True)
    assert found.records == [Demonstration("c", "defgh")]
    assert [place for place, *_ in found.bad] == ["line 1"]


def talk(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def test_of_a_conversation_the_oldest_turns_go_first():
    system = (Message("system", "ssss"),)
    record = Conversation((*system, *talk("old question", "old answer", "new question", "new answer")))
    left = Conversation((*system, *talk("new question", "new answer")))
    n = len(encode_conversation(CHAT, left).tokens)
    (found,) = fit(file_of(record), CHAT, Room(n, "room"), shorten=True).records
    assert found == left
    (found,) = fit(file_of(record), CHAT, Room(n - 4, "room"), shorten=True).records
    assert found == Conversation((*system, *talk("question", "new answer")))
    assert len(encode_conversation(CHAT, found).tokens) == n - 4
    assert not fit(file_of(record), CHAT, Room(n - 13, "room"), shorten=True).records
    assert len(fit(file_of(record), CHAT, Room(n + 25, "room"), shorten=True).records[0].messages) == 3
    assert fit(file_of(record), CHAT, Room(n + 26, "room"), shorten=True).records == [record]


def test_characters_that_the_tokenizer_lacks():
    tokenizer = with_special_tokens(train_char(["abc"]), ["<|endoftext|>"])
    found = fit(file_of(Demonstration("a", "b"), Demonstration("a", "Ω")), tokenizer, Room(9, "room"), shorten=True)
    assert found.records == [Demonstration("a", "b")]
    assert found.bad[0].kind == "with characters that the tokenizer lacks"
    assert "'Ω'" in found.bad[0].complaint


@given(st.text(st.sampled_from("the cat, ï東京"), max_size=40), st.integers(-1, 30))
@pytest.mark.parametrize("tokenizer", [BYTES, WORDS, CHAT], ids=["bytes", "words", "chat"])
def test_what_is_left_fits_and_is_the_end(tokenizer, prompt, most):
    """A tokenizer may encode the end of a text differently when it stands alone."""
    left = shortened(prompt, tokenizer, most)
    least = len(PromptFormat(tokenizer).encode(""))
    if most < least:
        assert left is None
        return
    assert prompt.endswith(left)
    assert len(PromptFormat(tokenizer).encode(left)) <= max(most, least)
    if len(PromptFormat(tokenizer).encode(prompt)) <= most:
        assert left == prompt
