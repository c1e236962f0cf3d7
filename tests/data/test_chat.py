"""Which tokens of a prompt and response are targets. Typed text is never special."""

import numpy as np
import pytest

from npllm.data.chat import Example, encode_conversation, encode_demonstration
from npllm.data.prompt_format import ASSISTANT, CHAT_TOKENS, END, SYSTEM, USER, PromptFormat
from npllm.data.records import Conversation, Demonstration, Message
from npllm.errors import ConfigError
from npllm.tokenizer import byte_tokenizer, train_bpe
from npllm.tokenizer.special_tokens import with_special_tokens

PLAIN = train_bpe(["def f(x):\n    return x\n" * 9], 271)
TOKENIZER = with_special_tokens(PLAIN, CHAT_TOKENS)
EOT = TOKENIZER.eot_id
SPECIAL = TOKENIZER.special_tokens


def supervised(example: Example) -> list[int]:
    return example.tokens[example.is_target].tolist()


def check_form(example: Example) -> None:
    assert example.tokens.dtype == np.int32
    assert example.is_target.dtype == bool
    assert example.tokens.shape == example.is_target.shape == (len(example.tokens),)


def test_the_supervised_tokens_are_exactly_the_response_and_the_stop_token():
    example = encode_demonstration(PLAIN, Demonstration("def f(x):\n", "    return x"))
    check_form(example)
    prompt, response = PLAIN.encode("def f(x):\n"), PLAIN.encode("    return x")
    assert example.tokens.tolist() == [*prompt, *response, EOT]
    assert supervised(example) == [*response, EOT]
    assert not example.is_target[: len(prompt)].any()


def test_prompt_and_response_meet_between_two_tokens():
    """Encoded together, "retu" + "rn" would be one token. A model that answers a prompt
    never sees it, so they are encoded apart."""
    example = encode_demonstration(PLAIN, Demonstration(" retu", "rn"))
    assert len(PLAIN.encode(" return")) < len(PLAIN.encode(" retu")) + len(PLAIN.encode("rn"))
    assert PLAIN.decode(supervised(example)) == "rn<|endoftext|>"


def test_an_empty_prompt_is_what_stands_before_a_document():
    example = encode_demonstration(PLAIN, Demonstration("", "x"))
    assert example.tokens.tolist() == [EOT, *PLAIN.encode("x"), EOT]
    assert example.is_target.tolist() == [False, True, True]


def test_an_empty_response_teaches_to_stop():
    example = encode_demonstration(PLAIN, Demonstration("x", ""))
    assert supervised(example) == [EOT]


TALK = Conversation(
    (
        Message("system", "brief"),
        Message("user", "return?"),
        Message("assistant", "x"),
        Message("user", "f"),
        Message("assistant", "def f"),
    )
)


def test_the_supervised_tokens_of_a_conversation_are_what_the_assistant_says_and_its_stop_tokens():
    example = encode_conversation(TOKENIZER, TALK)
    check_form(example)
    text = f"{SYSTEM}brief{END}{USER}return?{END}{ASSISTANT}x{END}{USER}f{END}{ASSISTANT}def f{END}"
    assert example.tokens.tolist() == TOKENIZER.encode(text, allowed_special=True)
    assert TOKENIZER.decode(supervised(example)) == f"x{END}def f{END}"


def test_the_loss_begins_where_the_prompt_of_a_chat_ends():
    """Generation continues the same ids that come before the response in training."""
    example = encode_conversation(TOKENIZER, TALK)
    prompt = PromptFormat(TOKENIZER).encode(TALK.messages[:-1])
    assert prompt == example.tokens[: len(prompt)].tolist()
    assert supervised(Example(example.tokens[len(prompt) :], example.is_target[len(prompt) :])) == (
        example.tokens[len(prompt) :].tolist()
    )
    assert prompt[-1] == SPECIAL[ASSISTANT]


def test_to_a_model_of_conversations_a_prompt_is_what_the_user_says():
    """A demonstration, a preference and a rollout put the prompt in the same form."""
    talk = Conversation((Message("user", "return?"), Message("assistant", "x")))
    for_training = encode_conversation(TOKENIZER, talk)
    example = encode_demonstration(TOKENIZER, Demonstration("return?", "x"))
    assert example.tokens.tolist() == for_training.tokens.tolist()
    assert example.is_target.tolist() == for_training.is_target.tolist()
    for prompt in ("return?", talk.messages[:1]):
        asked = PromptFormat(TOKENIZER)
        ids = [*asked.encode(prompt), *asked.encode_response("x")]
        assert ids == for_training.tokens.tolist()
    assert PromptFormat(TOKENIZER).stop_id() == SPECIAL[END]
    assert PromptFormat(PLAIN).stop_id() == EOT
    some = with_special_tokens(PLAIN, [ASSISTANT])
    assert PromptFormat(some).stop_id() == EOT, "some tokens of a chat are no chat"


@pytest.mark.parametrize("typed", [*CHAT_TOKENS, "<|endoftext|>"])
def test_what_is_typed_is_never_a_special_token(typed):
    demonstration = encode_demonstration(PLAIN, Demonstration(f"a{typed}b", f"c{typed}d"))
    assert [i for i in demonstration.tokens if i in SPECIAL.values()] == [EOT]
    talk = (Message("user", f"a{typed}b"), Message("assistant", f"c{typed}d"))
    expected = [SPECIAL[text] for text in (USER, END, ASSISTANT, END)]
    assert [i for i in encode_conversation(TOKENIZER, Conversation(talk)).tokens if i in SPECIAL.values()] == expected
    assert [i for i in PromptFormat(TOKENIZER).encode(talk) if i in SPECIAL.values()] == [
        *expected,
        SPECIAL[ASSISTANT],
    ]


def test_a_tokenizer_without_the_tokens_is_refused():
    sentence = "the tokenizer has no special token {}; start from a run of npllm sft"
    with pytest.raises(ConfigError, match=sentence.format(r"<\|endoftext\|>")):
        encode_demonstration(byte_tokenizer(special_tokens=()), Demonstration("a", "b"))
    for encode in (encode_conversation, lambda tokenizer, talk: PromptFormat(tokenizer).encode(talk.messages)):
        with pytest.raises(ConfigError, match=sentence.format(r"<\|end\|>")):
            encode(PLAIN, TALK)
        with pytest.raises(ConfigError, match=sentence.format(r"<\|system\|>")):
            encode(with_special_tokens(PLAIN, [USER, ASSISTANT, END]), TALK)
