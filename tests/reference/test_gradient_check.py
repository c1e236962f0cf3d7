"""The gradient checker: what it accepts and refuses, and that it restores arrays."""

import numpy as np
import proofs
import pytest
from gradient_check import check_gradients

from npllm.reference.differences import numerical_gradient


@pytest.fixture(autouse=True)
def uncounted(monkeypatch):
    """Leave these checks uncounted: they prove nothing about the model."""
    monkeypatch.setattr(proofs, "counts", proofs.Counter())


@pytest.fixture
def weights():
    return np.random.default_rng(0).standard_normal((4, 5))


@pytest.fixture
def many_weights():
    return np.random.default_rng(1).standard_normal((40, 25))


def test_differences_resolve_eleven_digits(weights):
    # exp is its own derivative, so every derivative of the loss is of order one.
    numerical = numerical_gradient(lambda: np.exp(weights).sum(), weights)
    np.testing.assert_allclose(numerical, np.exp(weights), rtol=0, atol=1e-10)


def test_arrays_are_restored_to_the_bit(weights):
    weights[0, 0] = -0.0
    before = weights.tobytes()
    check_gradients(lambda: np.sin(weights).sum(), {"w": weights}, {"w": np.cos(weights)})
    check_gradients(lambda: np.sin(weights).sum(), {"w": weights}, {"w": np.cos(weights)}, elementwise_up_to=0)
    assert weights.tobytes() == before


@pytest.mark.parametrize("elementwise_up_to", [0, 100])
def test_arrays_are_restored_when_the_loss_raises(weights, elementwise_up_to):
    before = weights.tobytes()

    def loss():
        if weights.tobytes() != before:
            raise FloatingPointError
        return 0.0

    with pytest.raises(FloatingPointError):
        check_gradients(loss, {"w": weights}, {"w": weights}, elementwise_up_to=elementwise_up_to)
    assert weights.tobytes() == before


def test_a_view_is_changed_in_the_array_it_belongs_to(weights):
    columns = weights[:, 1:3]
    check_gradients(lambda: (weights**2).sum(), {"columns": columns}, {"columns": 2 * columns})


def test_the_message_names_the_array_and_the_worst_element(weights):
    gradient = 2 * weights
    gradient[3, 1] += 1e-4
    with pytest.raises(AssertionError, match=r"'blocks.0.weight'.*\[3, 1\]"):
        check_gradients(lambda: (weights**2).sum(), {"blocks.0.weight": weights}, {"blocks.0.weight": gradient})


def test_one_wrong_element_of_a_large_array_is_found(many_weights):
    gradient = 2 * many_weights
    check_gradients(lambda: (many_weights**2).sum(), {"w": many_weights}, {"w": gradient})
    gradient[17, 3] *= 1.01
    with pytest.raises(AssertionError, match=r"'w'.*\[17, 3\]"):
        check_gradients(lambda: (many_weights**2).sum(), {"w": many_weights}, {"w": gradient})


@pytest.mark.parametrize("relative_error", [1e-5, -1e-5])
@pytest.mark.parametrize("elementwise_up_to", [0, 100])
def test_an_error_in_the_fifth_digit_is_found(weights, relative_error, elementwise_up_to):
    gradient = 2 * weights * (1 + relative_error)
    with pytest.raises(AssertionError, match="'w'"):
        check_gradients(
            lambda: (weights**2).sum(), {"w": weights}, {"w": gradient}, elementwise_up_to=elementwise_up_to
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("elementwise_up_to", [0, 100])
def test_a_gradient_that_is_not_finite_is_wrong(weights, bad, elementwise_up_to):
    gradient = 2 * weights
    gradient[2, 0] = bad
    with pytest.raises(AssertionError, match=r"'w'.*\[2, 0\]"):
        check_gradients(
            lambda: (weights**2).sum(), {"w": weights}, {"w": gradient}, elementwise_up_to=elementwise_up_to
        )


def test_a_loss_that_is_not_finite_proves_nothing(weights):
    with pytest.raises(AssertionError, match="loss is nan"):
        check_gradients(lambda: np.nan, {"w": weights}, {"w": weights})


def test_a_gradient_that_should_be_zero_may_not_be_small(weights):
    nothing = np.zeros_like(weights)
    check_gradients(lambda: 1.0, {"w": weights}, {"w": nothing})
    with pytest.raises(AssertionError, match="'w'"):
        check_gradients(lambda: 1.0, {"w": weights}, {"w": nothing + 1e-9})


def test_every_array_must_have_its_gradient(weights):
    with pytest.raises(AssertionError, match="bias"):
        check_gradients(lambda: 0.0, {"weight": weights, "bias": weights}, {"weight": 0 * weights})


def test_a_gradient_of_another_shape_is_wrong(weights):
    with pytest.raises(AssertionError, match="shape"):
        check_gradients(lambda: 0.0, {"w": weights}, {"w": np.zeros(5)})


def test_float32_cannot_be_checked():
    weights = np.ones(3, np.float32)
    with pytest.raises(AssertionError, match="float64"):
        check_gradients(lambda: weights.sum(), {"w": weights}, {"w": weights})
