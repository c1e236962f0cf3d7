"""The order in which the parts of a batch are added."""

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.distributed import ranks as ranks_module
from npllm.distributed.pieces import piece_of, pieces
from npllm.distributed.tree import finished_by, fold, larger_half, leaves_of, most_waiting
from npllm.model import Parameters
from npllm.training.loop import accumulate

sizes = st.sampled_from([1, 2, 4, 8, 16])


def in_brackets(lo: int, hi: int) -> str:
    """The sum of the leaves lo ... hi - 1, with a bracket around each node."""
    if hi - lo == 1:
        return str(lo)
    mid = lo + larger_half(hi - lo)
    return f"({in_brackets(lo, mid)}+{in_brackets(mid, hi)})"


def on_one_rank(leaves: range) -> str:
    waiting = []
    for place, leaf in enumerate(leaves):
        total = str(leaf)
        for _ in range(finished_by(place, len(leaves))):
            total = f"({waiting.pop()}+{total})"
        waiting.append(total)
        assert place == len(leaves) - 1 or len(waiting) <= most_waiting(len(leaves))
    assert len(waiting) == 1
    return total


def test_the_tree_by_hand():
    assert in_brackets(0, 5) == "(((0+1)+(2+3))+4)"
    assert in_brackets(0, 7) == "(((0+1)+(2+3))+((4+5)+6))"


@given(n=st.integers(1, 70), size=sizes)
def test_every_number_of_ranks_adds_in_the_same_order(n, size):
    """Catches ranks that split the leaves elsewhere than the tree does."""
    leaves = [leaves_of(rank, size, n) for rank in range(size)]
    assert [leaf for each in leaves for leaf in each] == list(range(n))
    sums = [on_one_rank(each) if each else None for each in leaves]
    assert fold(sums, lambda left, right: f"({left}+{right})") == in_brackets(0, n)


@given(n=st.integers(0, 100_000), size=sizes)
def test_the_pieces_of_an_array_cover_it(n, size):
    cuts = pieces(n, size)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, n, size + 1)
    assert cuts == sorted(cuts)
    assert sorted(piece_of(rank, size) for rank in range(size)) == list(range(size))


@pytest.mark.parametrize("n_rows", [1, 2, 5, 6, 11, 16])
def test_gradients_and_losses_are_added_over_the_tree(n_rows):
    """The values are such that another order gives other bits."""
    values = np.float32(1.0) / np.arange(3, 3 + n_rows, dtype=np.float32) ** 3

    def node(lo, hi):
        if hi - lo == 1:
            return values[lo]
        mid = lo + larger_half(hi - lo)
        return node(lo, mid) + node(mid, hi)

    grads = Parameters({"weight": (3, 5)}, "float32")

    def gradient(rows, _):
        grads["weight"][...] += values[rows.start]
        return float(values[rows.start]), {"right": 1}

    loss, figures = accumulate(grads, n_rows, 1, gradient)
    assert (grads["weight"] == node(0, n_rows)).all()
    assert figures == {"right": n_rows}
    assert loss == pytest.approx(float(values.sum()), rel=1e-6)


def test_one_micro_batch_takes_no_other_buffer():
    """A run that fits into one micro-batch pays nothing, and keeps its bits."""
    grads, calls = Parameters({"weight": (2, 2)}, "float32"), count()
    accumulate(grads, 4, 4, lambda *_: (float(next(calls)), {}))
    assert next(calls) == 1
    assert grads._spares == []


def test_a_single_process_never_imports_mpi(monkeypatch):
    import subprocess
    import sys

    monkeypatch.setenv("PMI_SIZE", "1")
    code = "import sys, npllm.cli; from npllm.distributed import world; world(); sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert ranks_module.ALONE.size == 1
