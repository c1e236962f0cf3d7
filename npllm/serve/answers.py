"""Answers in OpenAI's form, whole or as chunks of a stream."""

import secrets
import time
from typing import Any

from npllm.serve.protocol import Asked
from npllm.serve.writing import Piece, Scored
from npllm.tokenizer import Tokenizer


class Answer:
    """The form of the answers to one request.

    name: of the model.
    """

    def __init__(self, asked: Asked, name: str):
        self.asked = asked
        self.n_tokens = [0] * len(asked.orders)  # chosen by the model, for each text
        self._tokenizer = asked.served.tokenizer
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": asked.served.fingerprint,
        }

    def usage(self) -> dict[str, int]:
        """The tokens so far. Those of a prompt count once, whatever n is."""
        prompt, written = self.asked.prompt_tokens, sum(self.n_tokens)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def whole(self, pieces: list[list[Piece]]) -> dict[str, Any]:
        """The answer with every text. pieces: of each text."""
        choices = []
        for index, of_text in enumerate(pieces):
            text = "".join(piece.text for piece in of_text)
            scored = [each for piece in of_text for each in piece.scored]
            self.n_tokens[index] = of_text[-1].n_tokens
            choices.append(self._choice(index, text, scored, of_text[-1].finish, "message", first=True))
        return self._head | {"choices": choices, "usage": self.usage()}

    def chunk(self, index: int, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A part of a text. first: whether it is the text's first part."""
        self.n_tokens[index] = piece.n_tokens
        return self._head | {
            "choices": [self._choice(index, piece.text, piece.scored, piece.finish, "delta", first=first)]
        }

    def last_chunk(self) -> dict[str, Any]:
        """The chunk with the usage, after those of the texts."""
        return self._head | {"choices": [], "usage": self.usage()}

    def _choice(self, index: int, text: str, scored: list[Scored], finish, said: str, *, first: bool) -> dict:
        scores = self.asked.orders[index].alternatives is not None
        if self.asked.chat:
            role = {"role": "assistant"} if first else {}
            logprobs = {"content": [self._chat_score(each) for each in scored], "refusal": None} if scores else None
            return {"index": index, said: role | {"content": text}, "logprobs": logprobs, "finish_reason": finish}
        echoed = self.asked.echoed[index]
        logprobs = self._completion_scores(index, scored) if scores else None
        return {
            "index": index,
            "text": echoed + text if first else text,
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def _chat_score(self, score: Scored) -> dict[str, Any]:
        likeliest = [_named(self._tokenizer, *each) for each in score.likeliest]
        return _named(self._tokenizer, score.token, score.logprob) | {"top_logprobs": likeliest}

    def _completion_scores(self, index: int, scored: list[Scored]) -> dict[str, list]:
        """Lists with an element for each token. Offsets count from the beginning of
        the text that is returned."""
        shift = len(self.asked.echoed[index])
        tops = []
        for score in scored:
            pairs = [*score.likeliest, (score.token, score.logprob)]  # the chosen token is always listed
            named = {token_text(self._tokenizer, token): logprob for token, logprob in pairs}
            tops.append(None if score.logprob is None else named)
        return {
            "tokens": [token_text(self._tokenizer, score.token) for score in scored],
            "token_logprobs": [score.logprob for score in scored],
            "top_logprobs": tops,
            "text_offset": [score.offset + shift for score in scored],
        }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token; of one that ends inside a character, its bytes as in
    bytes:\\xe2\\x82."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _named(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([token])
    return {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": list(raw)}
