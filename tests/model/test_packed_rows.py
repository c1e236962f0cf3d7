"""Documents that share a row have the losses and gradients that they have alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import EVERY, GPT_2, random_batch, set_weights_of_order_one, small_config

from npllm.errors import DataError
from npllm.model import GPT

T = 7


def rows_of(lengths: list[list[int]]) -> np.ndarray:
    """`starts`, (B, T), for rows whose documents have these lengths."""
    return np.array([np.repeat(np.cumsum([0, *row[:-1]]), row) for row in lengths])


@st.composite
def lengths_in_a_row(draw):
    lengths = []
    while (room := T - sum(lengths)) > 0:
        lengths.append(draw(st.integers(1, room)))
    return lengths


def order_one_model(backend, architecture, **fields):
    model = GPT(small_config(block_size=T + 1, **architecture, **fields), dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=3)
    return model


@pytest.mark.parametrize("architecture", [*EVERY.values(), GPT_2 | {"position": "rotary"}], ids=[*EVERY, "rotary gpt2"])
@settings(max_examples=4)
@given(lengths=st.lists(lengths_in_a_row(), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_packed_documents_are_documents_alone(backend, architecture, lengths, seed):
    model = order_one_model(backend, architecture)
    batch, starts = random_batch(model.config, len(lengths), T, seed), rows_of(lengths)
    n_targets = int((batch.targets >= 0).sum())
    losses, gradients = [], []

    model.grads.flat[:] = 0.0
    losses.append(model.loss_and_grad(*batch, starts=starts))
    gradients.append({name: gradient.copy() for name, gradient in model.grads.items()})

    model.grads.flat[:] = 0.0
    alone = 0.0
    nll = model.negative_log_likelihood(*batch, starts=starts)
    for b, row in enumerate(lengths):
        for end, length in zip(np.cumsum(row), row, strict=True):
            tokens, targets = (array[b : b + 1, end - length : end] for array in batch)
            alone += model.loss_and_grad(tokens, targets, n_targets=n_targets)
            expected = model.negative_log_likelihood(tokens, targets)
            np.testing.assert_allclose(nll[b : b + 1, end - length : end], expected, rtol=1e-11, atol=1e-12)
    assert losses[0] == pytest.approx(alone, rel=1e-12)
    assert model.loss(*batch, starts=starts) == pytest.approx(alone, rel=1e-12)
    for name, gradient in model.grads.items():
        error = np.linalg.norm(gradients[0][name] - gradient)
        assert error <= 1e-11 * np.linalg.norm(model.grads.flat), name


def test_a_row_of_one_document_is_a_row_without_starts(backend):
    model = order_one_model(backend, GPT_2)
    batch = random_batch(model.config, 2, T)
    assert model.loss(*batch, starts=np.zeros((2, T), int)) == pytest.approx(model.loss(*batch), rel=1e-14)


@pytest.mark.parametrize(
    "starts",
    [
        [[0, 0, 3]],  # a start after its own position
        [[0, -1, 0]],
        [[0, 0]],
        [0, 0, 0],
        [[0, 0, 0], [0, 0, 0]],
    ],
    ids=["behind its place", "negative", "too short", "one-dimensional", "too many rows"],
)
def test_bad_starts_are_refused(starts):
    """Bad starts are refused before a kernel uses them as addresses."""
    model = GPT(small_config())
    tokens = np.array([[1, 2, 3]])
    for use in (model.trace, model.hidden):
        with pytest.raises(DataError, match="starts .*; give"):
            use(tokens, starts=np.array(starts))
    with pytest.raises(DataError, match="starts .*; give"):
        model.loss_and_grad(tokens, tokens, starts=np.array(starts))
