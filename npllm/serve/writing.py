"""One text that is asked for, and the part of it that is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from npllm.generation.kv_cache import KVCache
from npllm.generation.sampling import Sampling
from npllm.generation.stop_texts import StopScan
from npllm.rlhf.divergence import log_softmax
from npllm.serve.weights import Served
from npllm.tokenizer import Tokenizer

ROWS_AT_ONCE = 64  # of logits of a prompt

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Order:
    """A text that is asked for.

    ids: of the prompt, at least one. alternatives: how many of the likeliest tokens are
    listed at each place; None = no log-probabilities at all. scores_prompt: also those
    of the prompt.
    """

    ids: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    alternatives: int | None = None
    scores_prompt: bool = False


class Scored(NamedTuple):
    """A token with its log-probability, before temperature and other settings.

    logprob: in nats; None for the first token of a prompt. likeliest: pairs of a token
    and its log-probability, the likeliest first. offset: where it begins, in characters
    of the text; below 0 in the prompt.
    """

    token: int
    logprob: float | None
    likeliest: list[tuple[int, float]]
    offset: int


class Piece(NamedTuple):
    """A part of a text that is written.

    scored: the tokens of the part, if log-probabilities are asked for. n_tokens: how
    many the model has chosen so far. finish: why the text ends here; None = it goes on.
    """

    text: str
    scored: list[Scored]
    n_tokens: int
    finish: Finish | None = None


class Writing:
    """A text while the scheduler writes it.

    deliver: called with each Piece, and with an exception if the text cannot be
    written, in the scheduler's thread. cancelled: nobody waits for the text any more.
    """

    def __init__(self, served: Served, order: Order, deliver: Callable[[Piece | Exception], None]):
        self.served, self.order, self.deliver = served, order, deliver
        self.cancelled = False
        self.finish: Finish | None = None
        self.cache: KVCache | None = None
        self.tokens = list(order.ids)  # of the prompt and the text
        self._decoder = served.tokenizer.stream_decoder()
        self._scan = StopScan(order.stop)
        self._specials = set(served.tokenizer.special_tokens.values())
        self._decoded = self._delivered = 0  # characters
        self._pending: list[Scored] = []  # tokens whose characters may still fall to a stop text

    @property
    def n_written(self) -> int:
        """How many tokens the model has chosen."""
        return len(self.tokens) - len(self.order.ids)

    def begin(self) -> None:
        """Read the prompt and choose the first token."""
        order, model = self.order, self.served.model
        if order.scores_prompt:
            self.deliver(Piece("", scored_prompt(self.served, order), 0))
        if order.max_tokens == 0:
            self._end("length")
            return
        capacity = min(self.served.block_size, len(order.ids) + order.max_tokens)
        self.cache = KVCache(model, batch=1, capacity=capacity)
        self.add(model.extend(np.array([order.ids], np.int32), self.cache)[0])

    def add(self, logits: np.ndarray) -> None:
        """Choose the next token and deliver what is certain. logits: (V,)."""
        order = self.order
        token = order.sampling.choose(logits, self.n_written, self.tokens)
        self.tokens.append(token)
        if token in self._specials:
            self._end("stop")
            return
        if order.alternatives is not None:
            self._pending.append(scored(token, logits, order.alternatives, self._decoded))
        piece = self._decoder.push(token)
        self._decoded += len(piece)
        ready = self._scan.push(piece)
        if self._scan.found:
            self._end("stop", ready)
        elif self.n_written == order.max_tokens:
            self._end("length", ready)
        elif ready:
            self._deliver(ready, [])

    def _end(self, finish: Finish, ready: str = "") -> None:
        self.finish = finish
        rest = [] if self._scan.found else self._pending
        self._deliver(ready + self._scan.rest(), rest)

    def _deliver(self, text: str, rest: list[Scored]) -> None:
        """Deliver a part of the text, with the tokens that begin in it, and `rest`."""
        self._delivered += len(text)
        begun = [each for each in self._pending if each.offset < self._delivered]
        self._pending = self._pending[len(begun) :]
        self.deliver(Piece(text, begun + rest[len(begun) :], self.n_written, self.finish))


def scored(token: int, logits: np.ndarray, count: int, offset: int) -> Scored:
    """Return a chosen token with its log-probability and the `count` likeliest."""
    log_p = log_softmax(np.asarray(logits, np.float64))
    likeliest = np.argsort(-log_p, kind="stable")[:count]
    return Scored(token, float(log_p[token]), [(int(each), float(log_p[each])) for each in likeliest], offset)


def scored_prompt(served: Served, order: Order) -> list[Scored]:
    """Return the tokens of a prompt, each with its log-probability after those before
    it."""
    ids, model, count = order.ids, served.model, order.alternatives or 0
    offsets = token_offsets(served.tokenizer, ids)
    found = [Scored(ids[0], None, [], offsets[0])]
    hidden = model.hidden(np.array([ids], np.int32))[: len(ids) - 1]
    for first in range(0, len(hidden), ROWS_AT_ONCE):
        rows = model.logits_of(hidden[first : first + ROWS_AT_ONCE])
        for place, logits in enumerate(rows, first + 1):
            found.append(scored(ids[place], logits, count, offsets[place]))
    return found


def token_offsets(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return where each token begins, in characters before the end of all."""
    decoder, offsets, length = tokenizer.stream_decoder(), [], -len(tokenizer.decode(ids))
    for token in ids:
        offsets.append(length)
        length += len(decoder.push(token))
    return offsets
