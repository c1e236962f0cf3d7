"""Signals: the first Ctrl-C stops training after its update, the second at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds. A system that ends a job sends a signal to all its processes, and mpiexec
# passes on its own: a rank gets up to three, which are one request.
ONE_REQUEST = 0.5


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self):
        self.requested = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """In the block, the first SIGINT, SIGTERM or SIGHUP only sets `requested`. One that
    comes more than half a second later acts as it does outside the block.

    Python delivers signals to the main thread only. In any other thread the block
    changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    outside = {number: signal.getsignal(number) for number in (signal.SIGINT, *_endings())}
    asked = None

    def ask(number, frame):
        nonlocal asked
        now = time.monotonic()
        if asked is None:
            request.requested, asked = True, now
        elif now - asked > ONE_REQUEST:
            signal.signal(number, outside[number])
            signal.raise_signal(number)

    for number in outside:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in outside:
            signal.signal(number, outside[number])


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does. So the
    process removes its unfinished files, its drafts and its locks before it ends."""
    outside = {number: signal.getsignal(number) for number in _endings()}
    for number in outside:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in outside:
            signal.signal(number, outside[number])


def _endings() -> list[signal.Signals]:
    """The signals to handle besides SIGINT. One that is ignored, as SIGHUP under
    `nohup`, stays ignored."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
