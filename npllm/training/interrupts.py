"""Stopping politely: the first Ctrl-C asks, the second insists."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self):
        self.requested = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM only sets `requested`; the next one acts as it does outside."""
    request = StopRequest()
    signals = (signal.SIGINT, signal.SIGTERM)
    outside = {number: signal.getsignal(number) for number in signals}

    def ask(number, frame):
        request.requested = True
        for each in signals:
            signal.signal(each, outside[each])

    for number in signals:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in signals:
            signal.signal(number, outside[number])
