"""How a model is asked, and when its answer ends. Its tokenizer decides both.

    without the roles' tokens    prompt                                response <|endoftext|>
    with them                    <|user|> prompt <|end|> <|assistant|> response <|end|>

A tokenizer with the roles' tokens belongs to a model that learns from conversations: to
it a text is what the user says. Contents are encoded as ordinary text: a user who types
<|assistant|> sends these letters, not the token.
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
    """How the models of one tokenizer are asked.

    is_chat: prompts and responses are turns of a conversation.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.is_chat = all(token in tokenizer.special_tokens for token in CHAT_TOKENS)
        self._special_ids = set(tokenizer.special_tokens.values())

    def stop_id(self) -> int:
        """The token with which a response is complete. Raises ConfigError without one."""
        return self._special_id(END if self.is_chat else END_OF_TEXT)

    def encode(self, prompt: PromptText) -> list[int]:
        """The ids after which a response begins, at least one.

        Of messages, and of a text for a model that learns from conversations: they all,
        then the assistant's role token. Of a text for another model: itself; of an empty
        one what stands before a document. Raises ConfigError when the tokenizer lacks a
        special token that it takes, DataError for a text that it cannot write.
        """
        if isinstance(prompt, str) and not self.is_chat:
            return self.tokenizer.encode(prompt) or self._document_start()
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        ids = [token for message in messages for token in self.encode_message(message)]
        return [*ids, self._special_id(ASSISTANT)]

    def encode_message(self, message: Message) -> list[int]:
        """Its role token, its content and the end token."""
        end, role = self._special_id(END), self._special_id(ROLE_TOKENS[message.role])
        return [role, *self.tokenizer.encode(message.content), end]

    def encode_response(self, response: str) -> list[int]:
        """The ids of a response that ends by itself."""
        return [*self.tokenizer.encode(response), self.stop_id()]

    def last(self, ids: list[int], room: int) -> list[int]:
        """The last ids that there is room for, at least one, as the model knows texts.

        A conversation loses its oldest turns and keeps its system message, unless that
        takes more than half of the room. Where the last question alone is too long, it
        loses its beginning.
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
        """What a response says, piece by piece, in whole characters.

        It ends with the first special token: its stop token, or one with which another
        turn or document would begin. Bytes that are not UTF-8 become U+FFFD, but for half
        a character at the end, of which nothing is left.
        """
        decoder = self.tokenizer.stream_decoder()
        for token in self._said(tokens):
            if piece := decoder.push(token):
                yield piece

    def decode(self, tokens: Iterable[int]) -> str:
        """All pieces together."""
        return self.tokenizer.stream_decoder().push(list(self._said(tokens)))

    def _said(self, tokens: Iterable[int]) -> Iterator[int]:
        return takewhile(lambda token: token not in self._special_ids, tokens)

    def _document_start(self) -> list[int]:
        """The end of the document before or, in a vocabulary without that token, a newline."""
        if self.tokenizer.eot_id is not None:
            return [self.tokenizer.eot_id]
        try:
            return self.tokenizer.encode("\n")
        except DataError as error:
            raise ConfigError("This vocabulary has no token that can begin a text: give a prompt.") from error

    def _special_id(self, text: str) -> int:
        if text not in self.tokenizer.special_tokens:
            needed = "" if text == END_OF_TEXT else " from messages"
            raise ConfigError(f"the tokenizer has no special token {text}: begin with a run of npllm sft{needed}.")
        return self.tokenizer.special_tokens[text]
