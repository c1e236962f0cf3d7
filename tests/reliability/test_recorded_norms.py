"""The spike detector on recordings of sound trainings, made by `tools/record_norms.py`.

There are 10^5 recorded steps, and 10^6 steps drawn from them.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest

from npllm.training.spikes import (
    FAR_ALONE,
    LEAST_NOISE_OF_LOG_NORM,
    LEAST_NOISE_OF_LOSS,
    SpikeConfig,
    SpikeDetector,
)

SETTINGS = SpikeConfig()
WARMUP = 100
# Steps of the default model's recordings that the detector takes for a spike. The
# gradient norms of the default model vary less than those of small models, but rare
# text raises them as much. Index 7,089 is a table of letters of ISO 8859-1.
RARE_TEXT = {"default-4": [7089], "default-1": []}


def recordings() -> dict[str, np.ndarray]:
    """Name -> (steps, 2) float64: loss and log gradient norm of each step."""
    with h5py.File(Path(__file__).with_name("recorded_norms.h5")) as file:
        return {name: file[name][:].astype(np.float64) for name in file}


RECORDINGS = recordings()


def windows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and noise of the window before each step, for all steps at once.

    values: (steps,). Returns two arrays (steps - window,); the first entry is for the
    first step with a full window. The detector computes the same values step by step.
    """
    W = SETTINGS.window
    sums = np.cumsum(np.r_[0.0, values])
    squares = np.cumsum(np.r_[0.0, np.diff(values) ** 2])
    n = len(values) - W
    means = (sums[W : W + n] - sums[:n]) / W
    return means, np.sqrt(np.maximum(squares[W - 1 : W - 1 + n] - squares[:n], 0.0) / (W - 1) / 2)


def alarms(rows: np.ndarray, sigma: float = SETTINGS.sigma) -> np.ndarray:
    """Which steps after the first window are spikes, (steps - window,) bool.

    rows: (steps, 2), loss and log gradient norm. Every step enters the window, spike or
    not.
    """
    (mean, noise), (mean_norm, noise_norm) = windows(rows[:, 0]), windows(rows[:, 1])
    loss, norm = rows[SETTINGS.window :].T
    z_loss = (loss - mean) / np.maximum(noise, LEAST_NOISE_OF_LOSS)
    z_norm = (norm - mean_norm) / np.maximum(noise_norm, LEAST_NOISE_OF_LOG_NORM)
    together = np.maximum(z_loss, 0) + np.maximum(np.where(z_loss > 0, abs(z_norm), z_norm), 0)
    return (together > sigma) | ((norm - mean_norm > FAR_ALONE) & (z_norm > sigma / 2))


def fed(name: str, end: int) -> SpikeDetector:
    """A detector that has seen the steps of a recording before step `end`."""
    detector = SpikeDetector(SETTINGS, WARMUP)
    for loss, norm in RECORDINGS[name][:end]:
        detector.accept(loss, np.exp(norm))
    return detector


def test_there_are_a_hundred_thousand_steps_of_three_texts_and_three_batches():
    small = [f"{text}-{batch}" for text in ("stdlib", "pydoc", "shakespeare") for batch in (1, 4, 32)]
    assert sorted(RECORDINGS) == sorted([*small, *RARE_TEXT])
    assert sum(len(RECORDINGS[name]) for name in small) >= 100_000
    assert [len(RECORDINGS[name]) for name in RARE_TEXT] == [13_000, 12_000]


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_all_at_once_is_what_the_detector_says_step_by_step(name):
    """`alarms` agrees with the detector, at a limit low enough to give alarms."""
    rows, low = RECORDINGS[name][:700], 5.0
    detector, seen = SpikeDetector(SpikeConfig(sigma=low), 0), []
    for step, (loss, norm) in enumerate(rows):
        if step >= SETTINGS.window:
            seen.append(detector.reason(step, loss, np.exp(norm)) is not None)
        detector.accept(loss, np.exp(norm))
    np.testing.assert_array_equal(alarms(rows, low), seen)


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_03_no_recorded_step_is_taken_for_a_spike(name):
    """The one exception is a window of accented letters in 13,000 batches of code."""
    assert (np.flatnonzero(alarms(RECORDINGS[name])) + SETTINGS.window).tolist() == RARE_TEXT.get(name, [])


def test_03_at_most_one_of_a_million_steps_drawn_from_them_is_taken_for_a_spike():
    """A draw is a step's distance from the level around it, loss and norm together."""
    rng, found = np.random.default_rng(0), 0
    per_recording = -(-(10**6) // len(RECORDINGS)) + SETTINGS.window
    for name in sorted(RECORDINGS):
        rows = np.delete(RECORDINGS[name], RARE_TEXT.get(name, []), axis=0)[2000:]
        level = np.stack([np.convolve(column, np.full(257, 1 / 257), "valid") for column in rows.T], axis=1)
        residuals = rows[128:-128] - level
        found += int(alarms(residuals[rng.integers(0, len(residuals), per_recording)]).sum())
    assert found <= 1


@pytest.mark.parametrize("name", sorted(RECORDINGS))
@pytest.mark.parametrize("step", [1000, 4000, 9000])
def test_and_yet_a_batch_that_counts_fifty_times_is_one(name, step):
    """A batch that counts fifty times shows in its loss, its gradient norm, or both."""
    detector, (loss, log_norm) = fed(name, step), RECORDINGS[name][step]
    norm = np.exp(log_norm)
    assert detector.reason(step, loss, norm) is None
    for bad in ((50 * loss, 50 * norm), (50 * loss, norm), (loss, 50 * norm), (loss, 1e30), (1e30, norm)):
        assert detector.reason(step, *bad) is not None, bad
