"""Examples for fine-tuning: token ids, and the tokens that the loss is computed on.

The loss is computed on what the model has to write: the response, and the token after
it with which the model stops. (A model that is never trained on its stop token never
learns to stop.) It is not computed on what the model is given: prompts, messages of
users and systems, and role tokens.

    demonstration    prompt            response            <|endoftext|>
    is_target        -                 x                   x

    conversation     <|user|> content <|end|>      <|assistant|> content <|end|>
    is_target        -        -       -            -             x       x

A model that learns from conversations also learns from demonstrations, as conversations
of one turn (`prompt_format.py`).
"""

from typing import NamedTuple

import numpy as np

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import Conversation, Demonstration
from npllm.tokenizer.tokenizer import Tokenizer


class Example(NamedTuple):
    """One sequence to learn from.

    tokens: (n,) int32. is_target: (n,) bool, true where the loss is computed.
    """

    tokens: np.ndarray
    is_target: np.ndarray


def encode_demonstration(tokenizer: Tokenizer, demonstration: Demonstration) -> Example:
    """Return the Example of a prompt and its response, which ends with the stop token.

    The targets are the response and the stop token. Prompt and response are encoded
    separately, as they are when the model answers a prompt, so no token spans both.
    Raises ConfigError when the tokenizer has no stop token.
    """
    asked = PromptFormat(tokenizer)
    prompt = asked.encode(demonstration.prompt)
    return _example([(prompt, False), (asked.encode_response(demonstration.response), True)])


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    """Return a conversation's Example: role token, content and end token per message.

    The targets are the assistant's contents and the end tokens after them. Raises
    ConfigError when the tokenizer lacks one of CHAT_TOKENS.
    """
    asked, parts = PromptFormat(tokenizer), []
    for message in conversation.messages:
        role, *content = asked.encode_message(message)
        parts += [([role], False), (content, message.role == "assistant")]
    return _example(parts)


def _example(parts: list[tuple[list[int], bool]]) -> Example:
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    return Example(tokens, np.repeat([is_target for _, is_target in parts], [len(ids) for ids, _ in parts]))
