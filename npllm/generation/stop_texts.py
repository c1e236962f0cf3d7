"""Ends a text before the first of some words, while it is streamed."""

from collections.abc import Iterable, Iterator, Sequence

from npllm.errors import ConfigError


def check_stop(stop: Sequence[str]) -> None:
    """Raise ConfigError for a stop text that is empty: it would end every text."""
    if "" in stop:
        raise ConfigError("A stop text is empty; write at least one character, or leave it out.")


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield a text, piece by piece, up to the first of the stop texts.

    The stop text itself is not yielded. Characters that may be the start of one wait
    for what follows. Of stop texts that overlap, the one that ends first counts, and of
    those that end together the longest; so the way in which the text is divided into
    pieces changes nothing.
    """
    waiting = ""
    for piece in pieces:
        ready = ""
        for character in piece:
            waiting += character
            if found := [text for text in stop if waiting.endswith(text)]:
                if ready := ready + waiting[: -max(map(len, found))]:
                    yield ready
                return
            held = _start_of_stop(waiting, stop)
            ready, waiting = ready + waiting[: len(waiting) - held], waiting[len(waiting) - held :]
        if ready:
            yield ready
    if waiting:
        yield waiting


def _start_of_stop(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of a text may be the start of a stop text."""
    most = min(len(text), max(map(len, stop), default=1) - 1)
    return next((n for n in range(most, 0, -1) if any(each.startswith(text[-n:]) for each in stop)), 0)
