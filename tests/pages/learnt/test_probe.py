"""Linear probes on planted streams."""

import numpy as np
import pytest

from npllm.pages.learnt.probe import can_be_probed, chance_accuracy, probe_accuracy

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_planted_classes_are_found_and_noise_gives_chance(n_classes):
    y = RNG.integers(0, n_classes, 900)
    noise = RNG.normal(size=(900, 20))
    planted = noise.copy()
    planted[:, :n_classes] += 12.0 * np.eye(n_classes)[y]  # along directions of their own
    planted = planted * 1e-5 + 7.0  # neither centred nor of unit size
    halves = slice(0, 600), slice(600, 900)
    of = lambda x: probe_accuracy(x[halves[0]], y[halves[0]], x[halves[1]], y[halves[1]])  # noqa: E731
    assert of(planted) == 1.0
    assert of(noise) == pytest.approx(1 / n_classes, abs=0.12)


def test_the_answer_is_that_of_ridge_regression():
    """An independent solver: least squares with the penalty as further rows."""
    x, y = RNG.normal(size=(80, 4)), RNG.integers(0, 3, 80)
    mean, deviation = x[:60].mean(axis=0), x[:60].std(axis=0)
    rows = np.c_[(x - mean) / deviation, np.ones(80)]
    stacked = np.r_[rows[:60], np.sqrt(1e-3 * 60) * np.eye(5)]
    weight, *_ = np.linalg.lstsq(stacked, np.r_[np.eye(3)[y[:60]], np.zeros((5, 3))])
    expected = ((rows[60:] @ weight).argmax(axis=1) == y[60:]).mean()
    assert probe_accuracy(x[:60], y[:60], x[60:], y[60:]) == expected


def test_a_column_that_never_changes_is_harmless():
    x, y = np.ones((120, 3)), np.repeat([0, 1], 60)
    x[:, 0] = y
    assert probe_accuracy(x, y, x, y) == 1.0


def test_chance_names_the_most_frequent_class():
    assert chance_accuracy(np.array([1, 1, 0, 1])) == 0.75


def test_a_single_class_or_few_rows_are_not_probed():
    both = np.tile([0, 1], 50)
    assert can_be_probed(both, both)
    assert not can_be_probed(np.zeros(100, int), both)
    assert not can_be_probed(both, both[:10])
