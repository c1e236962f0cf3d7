"""What the sums over ranks cost: bytes on the wire, and seconds.

The model is the usual one: a message of m bytes takes latency + m / bandwidth seconds
(the alpha-beta model). A gradient of n bytes is added by recursive halving: p ranks
exchange n/2, n/4, ..., n/p bytes with partners at distances 1, 2, ..., p/2, and add
what they receive. The new weights are collected by the same messages in the opposite
order. Both together send 2 n (p - 1) / p bytes from each rank, the least that any
all-reduce can send.

Source: Thakur, Rabenseifner & Gropp, "Optimization of collective communication
operations in MPICH", 2005, section 4.
"""

from collections.abc import Iterator
from typing import NamedTuple

COPIES = 4  # passes over memory of a message inside a host: into shared memory, and out of it


class Network(NamedTuple):
    """What connects the ranks.

    latency: seconds of an empty message. bandwidth: bytes per second that a host sends,
    and receives at the same time; its ranks share them. memory_bandwidth: bytes per
    second of one rank, for messages between ranks of a host. ranks_per_host: a power of
    two; neighbours share a host.
    """

    latency: float
    bandwidth: float
    memory_bandwidth: float
    ranks_per_host: int = 1


class Seconds(NamedTuple):
    """inside: of messages inside a host, which its cores copy.

    between: of those between hosts, which may travel while the cores compute.
    """

    inside: float
    between: float

    @property
    def total(self) -> float:
        return self.inside + self.between


def halves(n_bytes: float, size: int) -> Iterator[tuple[float, int]]:
    """Yield the bytes and the distance of each exchange of recursive halving."""
    distance = 1
    while distance < size:
        n_bytes = n_bytes / 2
        yield n_bytes, distance
        distance *= 2


def bytes_sent(n_bytes: float, size: int) -> float:
    """Return the bytes that a rank sends for one update: pieces of the gradient, then
    pieces of the weights. n_bytes: of either."""
    return 2 * sum(part for part, _ in halves(n_bytes, size))


def halving_seconds(n_bytes: float, size: int, network: Network, spans: int = 1) -> Seconds:
    """Return the seconds of one recursive halving, or of the collection that has the
    same messages. spans: parts of the array that are sent in messages of their own."""
    inside = between = 0.0
    for part, distance in halves(n_bytes, size):
        latency = spans * network.latency
        if distance < network.ranks_per_host:
            inside += latency + part * COPIES / network.memory_bandwidth
        else:
            between += latency + part * network.ranks_per_host / network.bandwidth
    return Seconds(inside, between)


def small_seconds(size: int, network: Network) -> float:
    """Return the seconds of a collective operation on a few bytes: a message for each
    level of the tree."""
    return halving_seconds(0.0, size, network).total
