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


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_bytes_are_those_that_the_ranks_send(size):
    """Counted in the operations themselves, for a gradient of whole cache lines."""
    sent = []

    class Counting(MPIRanks):
        def __init__(self, rank):
            self.rank, self.size = rank, size

        def _exchange(self, partner, sent_array, received):
            sent.append(sent_array.nbytes)

    n, counts = 16 * size, set()
    for rank in range(size):
        sent.clear()
        flat = np.zeros(n, np.float32)
        Counting(rank)._add_pieces(flat, flat.copy(), [True] * size, pieces(n, size))
        Counting(rank).collect(flat, pieces(n, size))
        counts.add(sum(sent))
    assert counts == {bytes_sent(4 * n, size)}


def test_seconds_by_hand():
    """Four ranks on four hosts: 1/2, then 1/4 of 800 bytes at 100 bytes per second."""
    assert halving_seconds(800.0, 4, NETWORK) == pytest.approx(2e-3 + 4.0 + 2.0)
    assert halving_seconds(800.0, 1, NETWORK) == 0.0
    assert small_seconds(8, NETWORK) == pytest.approx(3e-3)


def test_ranks_of_a_host_use_its_memory_and_share_its_network():
    """The first exchange stays on the host; in the second, both ranks send at once."""
    two = NETWORK._replace(ranks_per_host=2)
    inside, outside = 400.0 * costs.COPIES / 400.0, 200.0 * 2 / 100.0
    assert halving_seconds(800.0, 4, two) == pytest.approx(2e-3 + inside + outside)
