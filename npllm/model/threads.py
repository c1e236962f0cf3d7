"""The memory of a model, and several threads, such as those of a server, that use it.

They take turns, call by call, and each gets the same results as alone. A call may leave
something in memory for the next call of its thread: a hidden state, or a trace that
waits for its backward. It lies in an arena that no other thread uses.

Lifetimes. Each thread has two arenas for each model, from which kernels take memory. An
arena hands the same memory out again.

    arena     What a pass keeps: the stream, the caches of the blocks, and the results
              of the heads. Valid until the thread's next pass of the model, when
              `GPT._begin` frees all of it.
    scratch   What a block needs only while it runs. Valid until the end of the scope in
              which it was made: a block forward, or one half of a block backward.

Where no cache is kept, in an evaluation and in the backward, each block runs in a scope
of `arena`, so that all blocks use the memory of one. The result of a block is freed
with its scope; `x[...] =` and `dx[...] =` therefore copy it into the array of the
previous result.

Results of methods are valid as long as `arena` is: a trace, a hidden state, the results
of `log_probability_forward` and `log_probability_backward`. Logits and the negative
log-likelihood are arrays of their own. With LoRA the merged weights are valid until the
next pass of any model on the same workspace.
"""

import threading
from functools import wraps

from npllm.memory.arena import Arena


class Memory(threading.local):
    """The arenas of one model, two for each thread."""

    def __init__(self):
        self.arena, self.scratch = Arena(), Arena()


def one_thread_at_a_time(method):
    """Return a method that holds its object's `turn`, a re-entrant lock, while it runs.

    Another thread that calls such a method waits meanwhile. All threads share the
    arrays in which a pass merges or rounds weights, and in which it adds up gradients.
    """

    @wraps(method)
    def in_turn(self, *arguments, **options):
        with self.turn:
            return method(self, *arguments, **options)

    return in_turn
