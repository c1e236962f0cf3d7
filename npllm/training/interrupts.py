"""Stopping politely: the first Ctrl-C asks, the second insists."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self):
        self.requested = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP only sets `requested`; the next one acts as it does outside."""
    request = StopRequest()
    outside = {number: signal.getsignal(number) for number in (signal.SIGINT, *_endings())}

    def ask(number, frame):
        request.requested = True
        for each in outside:
            signal.signal(each, outside[each])

    for number in outside:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in outside:
            signal.signal(number, outside[number])


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does: what is half made
    is cleared away, and the locks and folders of the process with it."""
    outside = {number: signal.getsignal(number) for number in _endings()}
    for number in outside:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in outside:
            signal.signal(number, outside[number])


def _endings() -> list[signal.Signals]:
    """The signals that end a process by default. `nohup` has SIGHUP ignored, and so it stays."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
