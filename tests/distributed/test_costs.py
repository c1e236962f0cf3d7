"""The cost of sums over ranks: figures computed by hand, and their limits."""

import numpy as np
import pytest

from npllm.distributed import costs
from npllm.distributed.costs import Network, bytes_sent, halving_seconds, small_seconds
from npllm.distributed.mpi_ranks import MPIRanks
from npllm.distributed.pieces import pieces

NETWORK = Network(latency=1e-3, bandwidth=100.0, memory_bandwidth=400.0)


@pytest.mark.parametrize(("size", "share"), [(1, 0), (2, 1), (4, 1.5), (1024, 2 * 1023 / 1024)])
def test_bytes_of_an_update(size, share):
    """2 n (p - 1) / p: of two ranks, half of the gradient and half of the weights."""
    assert bytes_sent(4096.0, size) == 4096 * share


class Counted:
    """A communicator that only counts what is sent."""

    def __init__(self):
        self.sent = 0

    def Isend(self, array, *_):  # noqa: N802  (mpi4py's name)
        self.sent += array.nbytes
        return self

    def Irecv(self, *_):  # noqa: N802
        return self

    def Test(self):  # noqa: N802
        return True


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_bytes_are_those_that_the_ranks_send(size):
    """Half of them when the new weights are collected, which are whole cache lines."""
    n, sent = 16 * size, set()
    for rank in range(size):
        ranks = object.__new__(MPIRanks)  # without its thread
        ranks.comm, ranks.rank, ranks.size = Counted(), rank, size
        ranks.collect(np.zeros(n, np.float32), pieces(n, size))
        sent.add(ranks.comm.sent)
    assert sent == {bytes_sent(4 * n, size) / 2}


def test_seconds_by_hand():
    """Four ranks on four hosts: 1/2, then 1/4 of 800 bytes at 100 bytes per second."""
    assert halving_seconds(800.0, 4, NETWORK) == (0.0, pytest.approx(2e-3 + 4.0 + 2.0))
    assert halving_seconds(800.0, 4, NETWORK, spans=5).total == pytest.approx(10e-3 + 4.0 + 2.0)
    assert halving_seconds(800.0, 1, NETWORK) == (0.0, 0.0)
    assert small_seconds(8, NETWORK) == pytest.approx(3e-3)


def test_ranks_of_a_host_use_its_memory_and_share_its_network():
    """The first exchange stays on the host; in the second, both ranks send at once."""
    two = NETWORK._replace(ranks_per_host=2)
    inside, between = halving_seconds(800.0, 4, two)
    assert inside == pytest.approx(1e-3 + 400.0 * costs.COPIES / 400.0)
    assert between == pytest.approx(1e-3 + 200.0 * 2 / 100.0)
