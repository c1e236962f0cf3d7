"""Ends a text before the first of some words, while it is streamed."""

from collections.abc import Iterable, Iterator, Sequence

from npllm.errors import ConfigError


def check_stop(stop: Sequence[str]) -> None:
    """Raise ConfigError for a stop text that is empty: it would end every text."""
    if "" in stop:
        raise ConfigError("A stop text is empty; write at least one character, or leave it out.")


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield a text, piece by piece, up to the first of the stop texts (`StopScan`)."""
    scan = StopScan(stop)
    for piece in pieces:
        if ready := scan.push(piece):
            yield ready
        if scan.found:
            return
    if waiting := scan.rest():
        yield waiting


class StopScan:
    """Cuts a text that comes piece by piece before the first of the stop texts.

    The stop text itself is left out. Characters that may be the start of one wait for
    what follows. Of stop texts that overlap, the one that ends first counts, and of
    those that end together the longest; so the way in which the text is divided into
    pieces changes nothing. found: whether a stop text has come.
    """

    def __init__(self, stop: Sequence[str]):
        self.stop = stop
        self.found = False
        self._waiting = ""

    def push(self, piece: str) -> str:
        """Return what is certain to stand before a stop text, after one more piece."""
        ready = ""
        for character in piece:
            waiting = self._waiting + character
            if found := [text for text in self.stop if waiting.endswith(text)]:
                self.found, self._waiting = True, ""
                return ready + waiting[: -max(map(len, found))]
            certain = len(waiting) - _start_of_stop(waiting, self.stop)
            ready, self._waiting = ready + waiting[:certain], waiting[certain:]
        return ready

    def rest(self) -> str:
        """Return what still waits, at the end of the text."""
        return self._waiting


def _start_of_stop(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of a text may be the start of a stop text."""
    most = min(len(text), max(map(len, stop), default=1) - 1)
    return next((n for n in range(most, 0, -1) if any(each.startswith(text[-n:]) for each in stop)), 0)
