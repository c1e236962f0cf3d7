"""The arena allocates memory once; nothing reads it before it is written."""

from contextlib import contextmanager

import numpy as np
import pytest
from model_cases import every_architecture, random_batch, small_config

from npllm.memory.arena import CHUNK, Arena
from npllm.model import GPT

on_kernels = pytest.mark.parametrize("ops", ["kernels"], indirect=True)  # in the reference NumPy allocates


def used_twice(arena, *allocate):
    """Call the functions, reset, and call them again: the arrays of the second time.

    The memory of the second time has been used before.
    """
    for _ in range(2):
        arena.reset()
        arrays = [function() for function in allocate]
    return arrays


def test_arrays_are_aligned_and_apart():
    arena = Arena()
    a, b, c = used_twice(
        arena,
        lambda: arena.empty((3, 5), np.float32),
        lambda: arena.empty(7, np.float64),
        lambda: arena.empty((2, 1, 2), np.int64),
    )
    assert [(array.shape, array.dtype) for array in (a, b, c)] == [
        ((3, 5), np.float32),
        ((7,), np.float64),
        ((2, 1, 2), np.int64),
    ]
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in (a, b, c))
    assert [array.ctypes.data - a.ctypes.data for array in (a, b, c)] == [0, 64, 128]
    assert arena.peak == 192


def test_a_scope_gives_its_memory_back():
    arena = Arena()

    def scoped(size):
        with arena.scope():
            return arena.empty(size, np.uint8)

    outer, first, second, after = used_twice(
        arena,
        lambda: arena.empty(64, np.uint8),
        lambda: scoped(640),
        lambda: scoped(128),
        lambda: arena.empty(64, np.uint8),
    )
    assert [array.ctypes.data - outer.ctypes.data for array in (first, second, after)] == [64, 64, 64]
    assert arena.peak == 64 + 640


def test_a_full_chunk_is_followed_by_another():
    arena = Arena()
    for _ in range(2):
        arena.reset()
        small = arena.empty(8, np.float64)
        small[:] = 1.0
        with arena.scope():
            large = arena.empty(CHUNK // 8, np.float64)
            large[:] = 2.0
            assert np.all(small == 1.0)
            assert not np.shares_memory(small, large)
        again = arena.empty(8, np.float64)
        assert again.ctypes.data - small.ctypes.data == 64
    assert arena.peak == 64 + CHUNK


def test_a_request_larger_than_a_chunk_is_served():
    arena = Arena()
    array = arena.empty(CHUNK + 1, np.uint8)
    array[-1] = 1
    assert array.size == CHUNK + 1


@every_architecture
@on_kernels
def test_nothing_is_allocated_after_the_first_step(backend, architecture, monkeypatch):
    config = small_config(dropout=0.2, **architecture)
    model = GPT(config, backend=backend)
    batch = random_batch(config, B=3, T=5)
    for step in range(2):
        model.loss_and_grad(*batch, step=step)
    peak = model.arena.peak
    address = model.arena.empty(1, np.uint8).base.ctypes.data

    def fail(*_args, **_keywords):
        raise AssertionError("an allocation in a later step")

    monkeypatch.setattr("npllm.memory.arena.aligned_empty", fail)
    monkeypatch.setattr(np, "empty", fail)
    for step in range(2, 5):
        model.loss_and_grad(*batch, step=step)
        model.negative_log_likelihood(*batch)
    assert model.arena.peak == peak
    assert model.arena.empty(1, np.uint8).base.ctypes.data == address
    assert peak > 0


class PoisonedArena(Arena):
    """Fills memory with NaN (-1 as integers) when it is allocated and when freed."""

    POISON = 0xFF

    def empty(self, shape, dtype):
        array = super().empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = self.POISON
        return array

    @contextmanager
    def scope(self):
        mark = self._used
        with super().scope():
            yield
        for chunk in self._chunks:  # a small model needs one; there is none before the first allocation
            chunk[mark : 1 << 20] = self.POISON

    def reset(self):
        super().reset()
        for chunk in self._chunks:
            chunk[: 1 << 20] = self.POISON


@every_architecture
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@on_kernels
def test_no_stale_memory_is_read(backend, architecture, dropout):
    """Clean and poisoned memory give the same bits.

    So nothing is read before it is written, or after it was freed.
    """
    config = small_config(dropout=dropout, **architecture)
    results = []
    for kind in (Arena, PoisonedArena):
        model = GPT(config, backend=backend)
        model.memory.arena, model.memory.scratch = kind(), kind()
        losses = []
        for step in range(3):
            batch = random_batch(config, B=3, T=4 + step % 2, seed=step)
            losses += [model.loss_and_grad(*batch, step=step), model.loss(*batch), model.logits(batch.tokens).sum()]
        assert max(model.arena.peak, model.scratch.peak) < 1 << 20  # as much as is poisoned of a chunk
        results.append((losses, model.grads.flat.tobytes()))
    assert results[0] == results[1]


@every_architecture
@on_kernels
def test_a_block_keeps_few_numbers_for_each_of_x(backend, architecture):
    """A block keeps few arrays of the width of x for its backward.

    They are qkv (3), attended, stream, normed stream, y, and the input of the
    activation: one array of the MLP's width, or two with SwiGLU. QK-norm keeps its own
    input (3). Statistics take little.
    """
    peaks = []
    for n_layer in (2, 3):
        heads = {"n_kv_head": 2, "head_dim": None}
        config = small_config(n_layer=n_layer, n_embd=32, block_size=64, **(architecture | heads))
        model = GPT(config, backend=backend)
        model.loss_and_grad(*random_batch(config, B=40, T=64))
        peaks.append(model.arena.peak)
    one_width = 40 * 64 * 32 * 4
    numbers = 7 + (2 if config.mlp == "swiglu" else 1) * config.mlp_width / 32 + (3 if config.qk_norm else 0)
    assert numbers <= (peaks[1] - peaks[0]) / one_width < numbers + 0.7


def test_evaluation_between_steps_changes_nothing(backend):
    config = small_config(dropout=0.2)
    batch, other = random_batch(config, B=3, T=4), random_batch(config, B=5, T=6, seed=1)
    results = []
    for evaluate in (False, True):
        model = GPT(config, backend=backend)
        losses = []
        for step in range(3):
            losses.append(model.loss_and_grad(*batch, step=step))
            if evaluate:
                model.loss(*other)
                model.logits(other.tokens)
        results.append((losses, model.grads.flat.tobytes()))
    assert results[0] == results[1]


def test_results_outlive_the_next_step(backend):
    """`logits` and `negative_log_likelihood` return copies, not memory of the arena."""
    config = small_config()
    model = GPT(config, backend=backend)
    batch, other = random_batch(config, B=3, T=5), random_batch(config, B=3, T=5, seed=1)
    model.loss_and_grad(*batch)
    logits, nll = model.logits(batch.tokens), model.negative_log_likelihood(*batch)
    copies = logits.copy(), nll.copy()
    model.loss_and_grad(*other)
    model.negative_log_likelihood(*other)
    np.testing.assert_array_equal(logits, copies[0])
    np.testing.assert_array_equal(nll, copies[1])


@on_kernels
def test_peak_is_that_of_one_micro_batch(backend):
    config = small_config(n_embd=32, block_size=32, dropout=0.2)
    peaks = {}
    for rows, micro_batches in ((2, 1), (2, 4), (8, 1)):
        model = GPT(config, backend=backend)
        tokens, targets = random_batch(config, B=rows, T=32)
        for index in range(micro_batches):
            model.loss_and_grad(tokens, targets, n_targets=200, first_row=index * rows)
        peaks[rows, micro_batches] = model.arena.peak
    assert peaks[2, 1] == peaks[2, 4] < peaks[8, 1] / 2


@on_kernels
def test_evaluation_needs_the_memory_of_one_block(backend):
    peaks, training_peaks = [], []
    for n_layer in (2, 6):
        config = small_config(n_layer=n_layer)
        model = GPT(config, backend=backend)
        batch = random_batch(config, B=3, T=6)
        model.loss(*batch)
        peaks.append(model.arena.peak)
        model.loss(*batch)
        assert model.arena.peak == peaks[-1]
        model.loss_and_grad(*batch)
        training_peaks.append(model.arena.peak)
    assert peaks[0] == peaks[1] < training_peaks[0] < training_peaks[1]
