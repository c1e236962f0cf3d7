"""The sum of a gradient over the ranks, without MPI: the test brings the messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.distributed import Ranks
from npllm.distributed.pieces import piece_of, pieces
from npllm.distributed.reduction import Reduction
from npllm.distributed.tree import fold, leaves_of
from npllm.model import GPT, ModelConfig
from npllm.optim.shared_norm import shared_norm, squares_of
from npllm.training.loop import accumulate

N = 100


class Post:
    """Messages between ranks of one process. Equal senders, receivers and tags keep
    their order, as in MPI."""

    def __init__(self):
        self.sent, self.wanted = {}, {}

    def send(self, way, array):
        self.sent.setdefault(way, []).append(array.copy())
        return self

    def receive(self, way, array):
        self.wanted.setdefault(way, []).append(array)
        return Arrival(self, way, array)

    def Test(self):
        return True


class Arrival:
    def __init__(self, post, way, array):
        self.post, self.way, self.array, self.arrived = post, way, array, False

    def Test(self):
        sent, wanted = self.post.sent.get(self.way), self.post.wanted[self.way]
        if not self.arrived and sent and wanted[0] is self.array:
            self.array[:] = sent.pop(0)
            wanted.pop(0)
            self.arrived = True
        return self.arrived


class Posting(Ranks):
    def __init__(self, rank, size, post):
        self.rank, self.size, self._post = rank, size, post

    def post(self, partner, sent, received, tag=0):
        requests = []
        if received is not None and len(received):
            requests.append(self._post.receive((partner, self.rank, tag), received))
        if sent is not None and len(sent):
            requests.append(self._post.send((self.rank, partner, tag), sent))
        return requests

    def wait(self, request):
        assert request.Test(), "no message is on its way"


@given(
    size=st.sampled_from([1, 2, 4, 8]),
    n_leaves=st.integers(1, 12),
    borders=st.lists(st.integers(0, N), max_size=5),
    draw=st.randoms(use_true_random=False),
)
def test_each_rank_has_its_piece_of_the_sum(size, n_leaves, borders, draw):
    """In the order of the tree, whatever the spans are and whichever each rank starts
    first. Ranks without a micro-batch add nothing, not even zeros."""
    rng, post = np.random.default_rng(draw.randrange(2**32)), Post()
    present = [len(leaves_of(rank, size, n_leaves)) > 0 for rank in range(size)]
    values = [rng.standard_normal(N).astype(np.float32) if there else None for there in present]
    expected = fold(values, lambda left, right: left + right)
    edges = [0, *sorted(borders), N]
    spans = {str(number): slice(*pair) for number, pair in enumerate(zip(edges, edges[1:], strict=False))}
    cuts, reductions = pieces(N, size), []
    for rank in range(size):
        flat = np.full(N, np.nan, np.float32) if values[rank] is None else values[rank].copy()
        received = np.full(N, np.nan, np.float32)
        reductions.append(Reduction(Posting(rank, size, post), flat, received, cuts, present, spans))
    turns = [(reduction, name) for reduction in reductions for name in spans]
    draw.shuffle(turns)
    for reduction, name in turns:
        reduction.start(name)
    for _ in range(size):  # each look brings some spans a step further
        for started in (each for reduction in reductions for each in reduction._started.values()):
            started.go_on()
    for rank, reduction in enumerate(reductions):
        reduction.finish()
        own = slice(cuts[piece_of(rank, size)], cuts[piece_of(rank, size) + 1])
        assert reduction.flat[own].tobytes() == expected[own].tobytes()
    assert not any(post.sent.values())


def test_a_span_is_started_once():
    """A model that hands a span over before it is complete would do it again."""
    reduction = Reduction(Ranks(), np.zeros(4), None, [0, 4], [True], {"all": slice(0, 4)})
    reduction.start("all")
    with pytest.raises(KeyError):
        reduction.start("all")


@pytest.mark.parametrize("tied", [True, False])
def test_a_block_is_handed_over_when_it_is_final(tied):
    """In the last micro-batch only, from the last block to the first, with the bits
    that it has at the end. Catches a call before the backward of the block."""
    config = ModelConfig(n_layer=3, n_head=2, n_embd=8, block_size=4, vocab_size=11, tie_embeddings=tied)
    model, seen = GPT(config), []
    spans, start = model.grads.spans(), Reduction.start
    tokens = np.random.default_rng(0).integers(0, 11, (4, 4))

    def gradient(rows, when_final):
        final = lambda name: (when_final(name), seen.append((rows.start, name)))  # noqa: E731
        return model.loss_and_grad(tokens[rows], tokens[rows], n_targets=16, when_final=final), {}

    copies = {}

    def copy_and_start(self, name):
        copies[name] = model.grads.flat[spans[name]].copy()
        start(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reduction, "start", copy_and_start)
        accumulate(model.grads, 4, 1, gradient)
    early = ([] if tied else ["lm_head"]) + ["blocks.2", "blocks.1", "blocks.0"]
    assert [name for row, name in seen if row == 3] == early == list(copies)[: len(early)]
    assert set(copies) == set(spans)
    for name, span in spans.items():
        assert np.array_equal(copies[name], model.grads.flat[span])
    assert all(model.grads.flat[spans[name]].any() for name in early)


@pytest.mark.parametrize("cuts", [[0, 9000], [0, 4096, 9000], [0, 5000, 5016, 5032, 9000], [0, 48, 8192, 8192, 9000]])
def test_the_norm_of_pieces_is_that_of_the_whole(ops, cuts):
    """To the bit, with borders inside a chunk, at its end, and several in one."""
    flat = np.random.default_rng(1).standard_normal(9000).astype(np.float32)
    parts = [squares_of(flat, slice(*pair), ops.sums_of_squares) for pair in zip(cuts, cuts[1:], strict=False)]
    assert shared_norm(parts[::-1], ops.sums_of_squares) == ops.gradient_norm(flat)
