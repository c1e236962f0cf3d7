"""Examples for fine-tuning: token ids, and which of them the loss is on.

The loss is on what the model has to produce: the response, and the token after it with which the model stops. A model
that is never trained on its stop token never learns to stop. The loss is not on what it is given: prompts, what users
and systems say, and the tokens that say whose turn it is.

    demonstration    prompt            response            <|endoftext|>
    is_target        -                 x                   x

    conversation     <|user|> content <|end|>      <|assistant|> content <|end|>
    is_target        -        -       -            -             x       x

Contents are encoded as ordinary text: a user who types <|assistant|> sends these letters, not the token.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from npllm.data.records import Conversation, Demonstration, Message
from npllm.errors import ConfigError
from npllm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CHAT_TOKENS = (USER, ASSISTANT, SYSTEM, END)
ROLE_TOKENS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}


class Example(NamedTuple):
    """One sequence to learn from: tokens (n,) int32; is_target (n,) bool, true for the tokens that the loss is on."""

    tokens: np.ndarray
    is_target: np.ndarray


def encode_demonstration(tokenizer: Tokenizer, demonstration: Demonstration) -> Example:
    """Prompt, response, end of text; the targets are the response and the end of text.

    Prompt and response are encoded apart, as they are when the model answers a prompt, so no token spans both. An empty
    prompt becomes the end-of-text token, which is what stands before a document. Raises ConfigError when the tokenizer
    has no end-of-text token.
    """
    end = _special_id(tokenizer, END_OF_TEXT)
    prompt = tokenizer.encode(demonstration.prompt) or [end]
    response = [*tokenizer.encode(demonstration.response), end]
    return _example([(prompt, False), (response, True)])


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    """Each message as its role token, its content and the end token; the targets are what the assistant says and the
    end tokens after it. Raises ConfigError when the tokenizer lacks one of CHAT_TOKENS."""
    end = _special_id(tokenizer, END)
    parts = []
    for message in conversation.messages:
        parts.append(([_role_id(tokenizer, message)], False))
        parts.append(([*tokenizer.encode(message.content), end], message.role == "assistant"))
    return _example(parts)


def encode_messages_prompt(tokenizer: Tokenizer, messages: Iterable[Message]) -> list[int]:
    """The ids after which the assistant speaks: all messages, then the assistant's role token. Raises ConfigError when
    the tokenizer lacks one of CHAT_TOKENS."""
    end = _special_id(tokenizer, END)
    ids: list[int] = []
    for message in messages:
        ids += [_role_id(tokenizer, message), *tokenizer.encode(message.content), end]
    return [*ids, _special_id(tokenizer, ASSISTANT)]


def _example(parts: list[tuple[list[int], bool]]) -> Example:
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    return Example(tokens, np.repeat([is_target for _, is_target in parts], [len(ids) for ids, _ in parts]))


def _role_id(tokenizer: Tokenizer, message: Message) -> int:
    return _special_id(tokenizer, ROLE_TOKENS[message.role])


def _special_id(tokenizer: Tokenizer, text: str) -> int:
    if text not in tokenizer.special_tokens:
        raise ConfigError(f"the tokenizer has no special token {text}: use a run that npllm sft made, which adds it.")
    return tokenizer.special_tokens[text]
