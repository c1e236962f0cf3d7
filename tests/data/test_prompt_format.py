"""Prompts that are too long for the model, and the text of the tokens it writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data.prompt_format import CHAT_TOKENS, PromptFormat
from npllm.data.records import Message
from npllm.errors import ConfigError
from npllm.tokenizer import byte_tokenizer, train_char
from npllm.tokenizer.special_tokens import with_special_tokens

TOKENIZER = with_special_tokens(byte_tokenizer(), CHAT_TOKENS)
CHAT, PLAIN = PromptFormat(TOKENIZER), PromptFormat(byte_tokenizer())


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, allowed_special=True)


def kept(text: str, room: int) -> str:
    return TOKENIZER.decode(CHAT.last(ids(text), room))


TALK = "<|user|>ab<|end|><|assistant|>cd<|end|><|user|>efg<|end|><|assistant|>"  # 4 + 4 + 5 + 1 tokens


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (14, TALK),
        (13, "<|user|>efg<|end|><|assistant|>"),
        (6, "<|user|>efg<|end|><|assistant|>"),
        (5, "<|user|>fg<|end|><|assistant|>"),
        (4, "<|user|>g<|end|><|assistant|>"),
    ],
)
def test_a_conversation_loses_its_oldest_turns_and_then_the_beginning_of_the_question(room, expected):
    """What is left starts with a role token, as every training conversation does."""
    assert kept(TALK, room) == expected


def test_an_answer_without_room_for_its_question_is_still_the_assistants():
    """This happens when the window slides within an answer."""
    assert kept(f"{TALK}hijkl", 8) == "<|user|><|end|><|assistant|>hijkl"
    assert kept(f"{TALK}hijkl", 6) == "<|assistant|>hijkl", "cut at the role itself"
    assert kept(f"{TALK}hijkl", 5) == "<|assistant|>ijkl"


def test_the_system_message_is_no_turn():
    """It is kept, unless it takes more than half of the room."""
    talk = f"<|system|>s<|end|>{TALK}"
    assert kept(talk, 16) == "<|system|>s<|end|><|user|>efg<|end|><|assistant|>"
    assert kept(talk, 8) == "<|system|>s<|end|><|user|>fg<|end|><|assistant|>"
    assert kept(talk, 6) == "<|system|>s<|end|><|user|><|end|><|assistant|>", "half of the room"
    assert kept(talk, 5) == "<|user|>fg<|end|><|assistant|>"
    fits = "<|system|>ssss<|end|><|user|>a<|end|><|assistant|>"
    assert kept(fits, len(ids(fits))) == fits, "where all fits, nothing is left out"


messages = st.lists(st.text("ab", max_size=5), min_size=1, max_size=7)


@given(messages, st.booleans(), st.text("c", max_size=9), st.integers(1, 30))
def test_what_is_left_fits_and_ends_as_it_did(contents, has_system, answer, room):
    roles = ["system"] * has_system + ["user", "assistant"] * 4
    talk = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    whole = CHAT.encode(talk) + TOKENIZER.encode(answer)
    left = CHAT.last(whole, room)
    assert 1 <= len(left) <= room
    assert left[0] in ids("<|user|><|assistant|><|system|>")
    if len(left) > 1:
        assert left[-1] == whole[-1]
    assert (left == whole) == (len(whole) <= room)


def test_a_plain_text_loses_its_beginning():
    assert PLAIN.last([1, 2, 3, 4], 3) == [2, 3, 4]
    assert PLAIN.last([1, 2], 3) == [1, 2]


def test_the_text_of_a_response_has_no_special_tokens_and_no_half_character():
    assert CHAT.decode(ids("yes<|end|>no")) == "yes"
    assert CHAT.decode(ids("yes<|endoftext|>no")) == "yes"
    assert CHAT.decode(ids("yes<|user|>no<|end|>")) == "yes", "the model would go on for the user"
    assert CHAT.decode(ids("é")[:1]) == ""
    assert CHAT.decode([*ids("aé")[:2], *ids("<|end|>")]) == "a"
    assert PLAIN.decode(byte_tokenizer().encode("<|end|>")) == "<|end|>", "typed, in a vocabulary without the token"


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=12))
def test_the_pieces_are_the_text(tokens):
    pieces = list(CHAT.pieces(iter(tokens)))
    assert "".join(pieces) == CHAT.decode(tokens)
    assert "" not in pieces


def test_a_vocabulary_without_an_end_of_text():
    assert PromptFormat(train_char(["ab\n"])).encode("") == train_char(["ab\n"]).encode("\n")
    with pytest.raises(ConfigError, match="give a prompt"):
        PromptFormat(train_char(["ab"])).encode("")
    assert PromptFormat(train_char(["ab"])).decode([0, 1]) == "ab"
