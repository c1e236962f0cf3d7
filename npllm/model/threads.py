"""Several threads that use one model, such as a server's: each gets what it would get alone.

They take turns, call by call. What a call leaves in memory for the next one of its thread
(a hidden state, a trace that waits for its backward) lies where no other thread allocates.
"""

import threading
from functools import wraps

from npllm.memory.arena import Arena


class Memory(threading.local):
    """Of one model: what its passes allocate from, for each thread another."""

    def __init__(self):
        self.arena, self.scratch = Arena(), Arena()


def one_thread_at_a_time(method):
    """A method of an object with a `turn`, a re-entrant lock.

    Another thread that calls such a method meanwhile waits: weights are merged or rounded at
    the start of a pass, and gradients added up, in arrays that all threads share.
    """

    @wraps(method)
    def in_turn(self, *arguments, **options):
        with self.turn:
            return method(self, *arguments, **options)

    return in_turn
