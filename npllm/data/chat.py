"""Examples for fine-tuning: token ids, and which of them the loss is on.

The loss is on what the model has to produce: the response, and the token after it with which the model stops. A model
that is never trained on its stop token never learns to stop. The loss is not on what it is given: prompts, what users
and systems say, and the tokens that say whose turn it is.

    demonstration    prompt            response            <|endoftext|>
    is_target        -                 x                   x

    conversation     <|user|> content <|end|>      <|assistant|> content <|end|>
    is_target        -        -       -            -             x       x

A tokenizer with the roles' tokens belongs to a model that learns from conversations; to it a demonstration is one of
a single turn, and a prompt what the user says. Contents are encoded as ordinary text: a user who types <|assistant|>
sends these letters, not the token.
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
    """Prompt, response, stop token; the targets are the response and the stop token.

    Prompt and response are encoded apart, as they are when the model answers a prompt, so no token spans both. Raises
    ConfigError when the tokenizer has no stop token.
    """
    prompt = encode_prompt(tokenizer, demonstration.prompt)
    return _example([(prompt, False), (encode_response(tokenizer, demonstration.response), True)])


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    """Each message as its role token, its content and the end token; the targets are what the assistant says and the
    end tokens after it. Raises ConfigError when the tokenizer lacks one of CHAT_TOKENS."""
    end = _special_id(tokenizer, END)
    parts = []
    for message in conversation.messages:
        parts.append(([_role_id(tokenizer, message)], False))
        parts.append(([*tokenizer.encode(message.content), end], message.role == "assistant"))
    return _example(parts)


def encode_prompt(tokenizer: Tokenizer, prompt: str | Iterable[Message]) -> list[int]:
    """The ids after which a response begins.

    Of messages, and of a text for a model that learns from conversations: they all, then the assistant's role token. Of
    a text for another model: itself; an empty one is what stands before a document, the end of text. Raises ConfigError
    when the tokenizer lacks a special token that it takes.
    """
    if isinstance(prompt, str) and not learns_conversations(tokenizer):
        return tokenizer.encode(prompt) or [stop_token(tokenizer)]
    end = _special_id(tokenizer, END)
    ids: list[int] = []
    for message in [Message("user", prompt)] if isinstance(prompt, str) else prompt:
        ids += [_role_id(tokenizer, message), *tokenizer.encode(message.content), end]
    return [*ids, _special_id(tokenizer, ASSISTANT)]


def encode_response(tokenizer: Tokenizer, response: str) -> list[int]:
    """The ids of a response that ends by itself. Raises ConfigError when the tokenizer has no stop token."""
    return [*tokenizer.encode(response), stop_token(tokenizer)]


def learns_conversations(tokenizer: Tokenizer) -> bool:
    """Whether prompts and responses are turns of a conversation to its model."""
    return all(token in tokenizer.special_tokens for token in CHAT_TOKENS)


def stop_token(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a response. Raises ConfigError where there is none."""
    return _special_id(tokenizer, END if learns_conversations(tokenizer) else END_OF_TEXT)


def _example(parts: list[tuple[list[int], bool]]) -> Example:
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    return Example(tokens, np.repeat([is_target for _, is_target in parts], [len(ids) for ids, _ in parts]))


def _role_id(tokenizer: Tokenizer, message: Message) -> int:
    return _special_id(tokenizer, ROLE_TOKENS[message.role])


def _special_id(tokenizer: Tokenizer, text: str) -> int:
    if text not in tokenizer.special_tokens:
        needed = "" if text == END_OF_TEXT else " from messages"
        raise ConfigError(f"the tokenizer has no special token {text}: begin with a run of npllm sft{needed}.")
    return tokenizer.special_tokens[text]
