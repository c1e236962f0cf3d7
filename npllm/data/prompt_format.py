"""How a prompt is encoded, and which token ends the response.

The tokenizer decides both.

    without role tokens    prompt                                response <|endoftext|>
    with role tokens       <|user|> prompt <|end|> <|assistant|> response <|end|>

A tokenizer with role tokens belongs to a model that learns from conversations. For such
a model a text is a message of the user. Contents are encoded as ordinary text: where a
user types <|assistant|>, the model gets these letters, not the token.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile

from npllm.data.records import Message, PromptText
from npllm.errors import ConfigError, DataError
from npllm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CHAT_TOKENS = (USER, ASSISTANT, SYSTEM, END)
ROLE_TOKENS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}


class PromptFormat:
    """Encodes prompts and responses for the models of one tokenizer.

    is_chat: prompts and responses are turns of a conversation.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.is_chat = all(token in tokenizer.special_tokens for token in CHAT_TOKENS)
        self._special_ids = set(tokenizer.special_tokens.values())

    def stop_id(self) -> int:
        """Return the id of the token that ends a response.

        Raises ConfigError when there is none.
        """
        return self._special_id(END if self.is_chat else END_OF_TEXT)

    def encode(self, prompt: PromptText) -> list[int]:
        """Return the ids that precede a response, at least one.

        For messages they are all messages and the assistant's role token. A text counts
        as one message where the model learns from conversations. For another model the
        ids are those of the text; an empty text becomes the token that precedes a
        document. Raises ConfigError when the tokenizer lacks a special token that is
        needed, and DataError for a text that the tokenizer cannot encode.
        """
        if isinstance(prompt, str) and not self.is_chat:
            return self.encode_text(prompt)
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        ids = [token for message in messages for token in self.encode_message(message)]
        return [*ids, self._special_id(ASSISTANT)]

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text to go on with, for any model.

        An empty text becomes the token that precedes a document.
        """
        return self.tokenizer.encode(text) or self.document_start()

    def encode_message(self, message: Message) -> list[int]:
        """Return the ids of the role token, the content and the end token."""
        end, role = self._special_id(END), self._special_id(ROLE_TOKENS[message.role])
        return [role, *self.tokenizer.encode(message.content), end]

    def encode_response(self, response: str) -> list[int]:
        """Return the ids of a response and its stop token."""
        return [*self.tokenizer.encode(response), self.stop_id()]

    def last(self, ids: list[int], room: int) -> list[int]:
        """Return the last ids of a text, at most `room` and at least one.

        A conversation loses its oldest turns. It keeps its system message unless that
        takes more than half of the room. A last question that alone is too long loses
        its beginning.
        """
        if len(ids) <= room or not self.is_chat:
            return ids[-room:]
        special = self.tokenizer.special_tokens
        system = ids[: ids.index(special[END]) + 1] if ids[0] == special[SYSTEM] else []
        system = system if 2 * len(system) <= room else []
        first = len(ids) - (room - len(system))
        if special[USER] in ids[first:]:
            return system + ids[ids.index(special[USER], first) :]
        roles = {special[token] for token in ROLE_TOKENS.values()}
        role = next(token for token in reversed(ids[: first + 1]) if token in roles)  # of the turn that is cut
        return [*system, role, *ids[first + 1 :]]

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of a response piece by piece, in whole characters.

        The response ends at the first special token: its stop token, or one that would
        start another turn or document. Bytes that are not UTF-8 become U+FFFD. An
        incomplete character at the end is dropped.
        """
        decoder = self.tokenizer.stream_decoder()
        for token in self._said(tokens):
            if piece := decoder.push(token):
                yield piece

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the whole text of a response: all pieces, joined."""
        return self.tokenizer.stream_decoder().push(list(self._said(tokens)))

    def _said(self, tokens: Iterable[int]) -> Iterator[int]:
        return takewhile(lambda token: token not in self._special_ids, tokens)

    def document_start(self) -> list[int]:
        """The end-of-text token or, in a vocabulary without it, a newline."""
        if self.tokenizer.eot_id is not None:
            return [self.tokenizer.eot_id]
        try:
            return self.tokenizer.encode("\n")
        except DataError as error:
            raise ConfigError("this vocabulary has no token that can start a text; give a prompt.") from error

    def _special_id(self, text: str) -> int:
        if text not in self.tokenizer.special_tokens:
            needed = "" if text == END_OF_TEXT else " from messages"
            raise ConfigError(f"the tokenizer has no special token {text}; start from a run of npllm sft{needed}.")
        return self.tokenizer.special_tokens[text]
