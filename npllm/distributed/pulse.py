"""A rank that is stopped, or whose machine is lost, is noticed by its neighbour.

Each rank sends a beat to the next one in a ring, from a thread of its own, and listens
for those of the rank before it. A rank that works hard or waits for others still beats;
one that the system has stopped does not. When a rank has been silent for too long, its
neighbour says so and ends the job. (A rank that dies needs none of this: mpiexec sees
it.)
"""

import atexit
import sys
import threading
import time
from typing import Any

import numpy as np

from npllm.distributed.launch import end_by_signal

BEAT = 1.0  # seconds between two beats
LONGEST_SILENCE = 40.0  # seconds; the job ends within a minute
BEATING, LAST = 1, 2  # tags


class Pulse:
    """The beats of one rank.

    comm: a communicator that nothing else uses. names: the machine of each rank.
    """

    def __init__(self, comm: Any, names: list[str]):
        self.comm = comm
        self.next, self.before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.name = names[self.before]
        self._byte = np.zeros(1, np.uint8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        atexit.register(self.end)  # of a program that trains; npllm has ended it before

    def _beat(self) -> None:
        heard = looked = time.monotonic()
        while not self._ended.wait(BEAT):
            now = time.monotonic()
            if now - looked > 2 * BEAT:  # this rank itself was stopped, or the machine asleep
                heard += now - looked
            looked = now
            self._send(BEATING).Free()  # a byte is sent at once
            while self.comm.Iprobe(self.before, BEATING):
                self._receive(BEATING)
                heard = now
            if now - heard > LONGEST_SILENCE:
                print(
                    f"npllm: Rank {self.before}, on {self.name}, has not answered for {LONGEST_SILENCE:.0f} seconds; "
                    "look after its machine, then continue with npllm resume.",
                    file=sys.stderr,
                )
                end_by_signal()

    def _send(self, tag: int) -> Any:
        return self.comm.Isend(self._byte, self.next, tag)

    def _receive(self, tag: int) -> None:
        self.comm.Recv(np.empty(1, np.uint8), self.before, tag)

    def end(self) -> None:
        """Stop beating. Every rank of the ring calls this, and nothing is under way
        when all have."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        farewell, heard_last = self._send(LAST), False
        while not heard_last or not farewell.Test() or self.comm.Iprobe(self.before, BEATING):
            if self.comm.Iprobe(self.before, BEATING):
                self._receive(BEATING)
            elif self.comm.Iprobe(self.before, LAST):
                self._receive(LAST)
                heard_last = True
            else:
                time.sleep(0.001)
