"""Writes many texts at once, in one thread that alone uses the model.

    handlers ── submit ──> waiting ──> active ── up to 4 together ──> deliver

Each turn takes in at most one waiting text, whose prompt is read alone, and gives every
other active text its next token. So a text joins at the next token, and a long prompt
delays the others by one reading. Texts that share a pass have caches of their own
(`JoinedCaches`), and random numbers depend on the seed alone: a text is the same in any
company.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby

from npllm.errors import ResourceError
from npllm.generation.kv_cache import MOST_TOGETHER, JoinedCaches
from npllm.serve.writing import Writing


class Full(Exception):
    """There is no room for more texts that wait."""


class Stopped(Exception):
    """The server ends."""


class Scheduler:
    """A thread that writes texts.

    most_active: texts that are written at a time. most_waiting: texts that may wait for
    their turn.
    """

    def __init__(self, most_active: int, most_waiting: int):
        self.most_active, self.most_waiting = most_active, most_waiting
        self._waiting: deque[Writing] = deque()
        self._active: list[Writing] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, writings: Sequence[Writing]) -> None:
        """Have texts written. Raises Full where too many wait already, and Stopped
        after `stop`."""
        with self._changed:
            if self._stopping:
                raise Stopped
            room = self.most_active - len(self._active) + self.most_waiting - len(self._waiting)
            if len(writings) > room:
                raise Full
            self._waiting.extend(writings)
            self._changed.notify_all()

    def cancel(self, writings: Iterable[Writing]) -> None:
        """Stop writing texts, before their next token."""
        with self._changed:
            for writing in writings:
                writing.cancelled = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop writing all texts. Each one that is not finished receives Stopped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def count(self) -> int:
        """Return how many texts are being written or wait."""
        with self._changed:
            return len(self._active) + len(self._waiting)

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no text is written or waits. Returns False after `timeout`
        seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active and not self._waiting, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._tidy()
                self._changed.wait_for(lambda: self._waiting or self._active or self._stopping)
                if self._stopping:
                    break
                going_on = list(self._active)
                joining = self._waiting.popleft() if self._waiting and len(going_on) < self.most_active else None
                self._active += [joining] if joining else []
            if joining:
                _attempt([joining], joining.begin)
            for _, of_one_model in groupby(sorted(going_on, key=_model_of), key=_model_of):
                texts = list(of_one_model)
                for first in range(0, len(texts), MOST_TOGETHER):
                    together = texts[first : first + MOST_TOGETHER]
                    _attempt(together, partial(_advance, together))
        with self._changed:
            left, self._active = [*self._active, *self._waiting], []
            self._waiting.clear()
            self._changed.notify_all()
        for writing in left:
            _deliver(writing, Stopped())

    def _tidy(self) -> None:
        """Forget the texts that are finished or cancelled."""
        self._active = [each for each in self._active if not (each.finish or each.cancelled)]
        self._waiting = deque(each for each in self._waiting if not each.cancelled)
        self._changed.notify_all()


def _model_of(writing: Writing) -> int:
    return id(writing.served)


def _advance(together: Sequence[Writing]) -> None:
    """Give texts of one model their next token."""
    joined = JoinedCaches([writing.cache for writing in together])
    logits = together[0].served.model.extend_each([[writing.tokens[-1]] for writing in together], joined)
    for writing, row in zip(together, logits, strict=True):
        writing.add(row)


def _attempt(together: Sequence[Writing], action) -> None:
    """Act for texts. If that fails, they end, and the others go on."""
    try:
        action()
    except MemoryError:
        _fail(together, ResourceError("There is not enough memory for this text; ask for a shorter one."))
    except Exception as error:
        _fail(together, error)


def _fail(together: Sequence[Writing], error: Exception) -> None:
    for writing in together:
        writing.cancelled = True
        _deliver(writing, error)


def _deliver(writing: Writing, error: Exception) -> None:
    with suppress(RuntimeError):  # the event loop of the server has ended
        writing.deliver(error)
