"""The spike detector on simulated losses: no alarm on noise, alarms on known spikes."""

import math

import numpy as np
import pytest

from npllm.errors import ConfigError
from npllm.optim import BatchConfig, OptimConfig, batch_size, learning_rate
from npllm.training.spikes import SpikeConfig, SpikeDetector

N_STEPS = 100_000
OPTIM = OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=2000)
BATCH = BatchConfig(size=256, micro_size=8, ramp_start=8, ramp_steps=20_000)


def simulated(rng, tail):
    """The (loss, gradient norm) of 10^5 steps.

    The loss follows a power law with a plateau. Its noise shrinks as the batch grows.
    Twice it climbs and falls over 400 steps, as when a learning rate is raised tenfold.
    The norm jumps in warm-up.
    """
    steps = np.arange(N_STEPS)
    rows = np.array([batch_size(step, BATCH) for step in steps])
    lr = np.array([learning_rate(step, N_STEPS, OPTIM) for step in steps])
    restarts = sum(
        0.4 * np.exp(-(((steps - at) / 400.0) ** 2)) for at in (40_000, 70_000)
    )  # up and down over 400 steps
    level = 2.0 + 6.0 * (1 + steps / 50.0) ** -0.35 + restarts
    noise = tail(rng, N_STEPS) * 0.8 / np.sqrt(rows)
    log_norm = -1.0 + 0.3 * np.log(lr / lr.max()) + 2.0 * np.exp(-(((steps - 40) / 10.0) ** 2)) + restarts
    log_norm += tail(rng, N_STEPS) * (0.05 + 0.5 / np.sqrt(rows))
    return level + noise, np.exp(log_norm)


def normal(rng, n):
    return rng.standard_normal(n)


def heavy(rng, n):
    """Student's t with 8 degrees of freedom: beyond 6 once in 6,000 steps.

    That is a heavier tail than the mean over a batch has.
    """
    return rng.standard_t(8, n)


@pytest.mark.long
@pytest.mark.parametrize("tail", [normal, heavy], ids=["normal", "heavy tails"])
def test_03_a_hundred_thousand_noisy_losses_cause_no_alarm(tail):
    detector = SpikeDetector(SpikeConfig(), OPTIM.warmup_steps)
    losses, norms = simulated(np.random.default_rng(0), tail)
    for step, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True)):
        assert detector.reason(step, loss, norm) is None, step
        detector.accept(loss, norm)


@pytest.mark.parametrize("step", [2000, 5000, 19_999, 40_000, 99_000])
def test_03_and_yet_a_spike_in_the_same_run_is_seen(step):
    detector = SpikeDetector(SpikeConfig(), OPTIM.warmup_steps)
    losses, norms = simulated(np.random.default_rng(0), normal)
    for loss, norm in zip(losses[:step].tolist(), norms[:step].tolist(), strict=True):
        detector.accept(loss, norm)
    noise = 1 / np.sqrt(batch_size(step, BATCH))
    usual, usual_norm = losses[step], norms[step]
    assert detector.reason(step, usual + 25 * 0.8 * noise, usual_norm) is not None
    assert detector.reason(step, usual, 50 * usual_norm) is not None
    both = usual + 12 * 0.8 * noise, usual_norm * np.exp(12 * max(0.15, 0.05 + 0.5 * noise))
    assert detector.reason(step, *both) is not None
    assert detector.reason(step, usual, usual_norm) is None


def steady(config=SpikeConfig(), warmup_steps=0, n=64, loss=3.0, norm=1.0):  # noqa: B008
    detector = SpikeDetector(config, warmup_steps)
    for _ in range(n):
        detector.accept(loss, norm)
    return detector


def test_not_armed_before_there_is_enough_history():
    assert steady(n=63).reason(63, 1000.0, 1000.0) is None
    assert steady(n=64).reason(64, 1000.0, 1.0) is not None
    assert steady(n=64).reason(64, 3.0, 1000.0) is not None


def test_the_reason_says_what_was_seen_and_what_is_usual():
    assert steady(norm=0.5).reason(64, 4.0, 0.5) == (
        "the loss is 4 (mean 3) and the gradient norm 0.5 (mean 0.5), together 20 times their noise"
    )


def test_not_armed_before_warm_up_is_over():
    detector = steady(warmup_steps=100, n=99)
    assert detector.reason(99, 1000.0, 1000.0) is None
    assert detector.reason(100, 1000.0, 1.0) is not None


def test_a_mild_outlier_of_a_steady_run_is_left_to_clipping():
    """A loss's noise is at least 0.05 nats; a norm alone must be 30 times the mean."""
    assert steady().reason(64, 3.0 + 13.9 * 0.05, 1.0) is None
    assert steady().reason(64, 3.0 + 14.1 * 0.05, 1.0) is not None
    assert steady().reason(64, 3.0, 29.9) is None
    assert steady().reason(64, 3.0, 30.1) is not None


def test_a_norm_far_beyond_any_tail_is_enough():
    """A factor of 30 is an alarm only if it is also far beyond the norm's own noise.

    The noise is that of the logarithm. The factor is 11 times a noise of 0.3, but less
    than 6 times a noise of 0.6.
    """
    detector = SpikeDetector(SpikeConfig(), 0)
    for log_norm in np.random.default_rng(3).normal(0.0, 0.3, 128):
        detector.accept(3.0, np.exp(log_norm))
    assert detector.reason(128, 3.0, 25.0) is None
    assert detector.reason(128, 3.0, 35.0) is not None
    for log_norm in np.random.default_rng(3).normal(0.0, 0.6, 128):
        detector.accept(3.0, np.exp(log_norm))
    assert detector.reason(256, 3.0, 35.0) is None


def test_loss_and_norm_count_together():
    assert steady().reason(64, 3.0 + 10 * 0.05, np.exp(10 * 0.25)) is not None
    assert steady().reason(64, 3.0 + 6 * 0.05, np.exp(6 * 0.15)) is None
    assert steady().reason(64, 1.0, np.exp(13 * 0.15)) is None, "a low loss takes nothing away, and adds nothing"


def test_a_norm_that_falls_counts_only_while_the_loss_is_up():
    assert steady().reason(64, 3.1, np.exp(-20 * 0.15)) is not None
    assert steady().reason(64, 2.9, np.exp(-20 * 0.15)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_a_spike(value):
    fresh = SpikeDetector(SpikeConfig(), warmup_steps=100)
    assert fresh.reason(0, value, 1.0) == f"the loss is {value}"
    assert fresh.reason(0, 1.0, value) == f"the gradient norm is {value}"


def test_the_limit_is_sigma_standard_deviations_of_the_window():
    """The limit is computed here by hand; values that left the window do not count."""
    rng = np.random.default_rng(1)
    old, recent = rng.normal(9.0, 3.0, 50), rng.normal(3.0, 0.2, 100)
    detector = SpikeDetector(SpikeConfig(window=100, sigma=5.0), 0)
    for loss in [*old, *recent]:
        detector.accept(loss, 1.0)
    limit = recent.mean() + 5.0 * np.sqrt(np.mean(np.diff(recent) ** 2) / 2)
    assert limit == pytest.approx(recent.mean() + 5.0 * recent.std(), rel=0.05)  # for pure noise the two agree
    assert detector.reason(150, limit + 1e-9, 1.0) is not None
    assert detector.reason(150, limit - 1e-9, 1.0) is None


def test_a_loss_that_falls_fast_hides_no_spike():
    """Noise is measured between neighbours, so a falling loss does not raise the limit.

    The loss falls from 8 to 2 nats within the window: its standard deviation is 1.7 and
    its noise 0.05.
    """
    detector, rng = SpikeDetector(SpikeConfig(), 0), np.random.default_rng(2)
    for level in np.linspace(8.0, 2.0, 128):
        detector.accept(level + 0.05 * rng.standard_normal(), 1.0)
    assert detector.reason(128, 6.5, 1.0) is not None
    assert detector.reason(128, 5.5, 1.0) is None, "0.5 above the mean of 5"


def test_a_gradient_of_zero_is_no_spike_and_no_error():
    detector = steady(norm=0.0)
    assert detector.reason(64, 3.0, 0.0) is None
    detector.accept(3.0, 0.0)


def test_a_gradient_that_vanishes_with_the_loss_up_is_a_spike():
    """Weights that a flipped exponent bit has blown up look like this.

    The softmax saturates, so the gradient is 0 and nothing is learnt any more.
    """
    assert steady().reason(64, 3.01, 0.0) is not None


def test_a_level_of_the_ledger_takes_the_place_of_the_window():
    """A level of the ledger replaces the window at its own update and at no other.

    The ledger records the norms themselves, the window their logarithms.
    """
    detector = steady()
    detector.levels = {70: [(9.0, 20.0)] * 64}
    assert detector.reason(69, 9.0, 20.0) is not None
    assert detector.reason(70, 9.0, 20.0) is None
    assert detector.history() == [[9.0, np.log(20.0)]] * 64
    assert detector.reason(71, 12.0, 20.0) is not None


def test_the_window_survives_being_saved():
    detector, again = steady(n=64, loss=2.5, norm=0.3), SpikeDetector(SpikeConfig(), 0)
    detector.accept(7.0, 4.0)
    again.restore(detector.history())
    assert again.history() == detector.history()
    assert again.reason(65, 80.0, 1.0) == detector.reason(65, 80.0, 1.0)
    shorter = SpikeDetector(SpikeConfig(window=10, min_history=5), 0)
    shorter.restore(detector.history())
    assert shorter.history() == detector.history()[-10:]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"min_history": 1}, "spikes.min_history is 1"),
        ({"window": 63}, "spikes.window = 63 is below spikes.min_history = 64"),
        ({"sigma": 0.0}, "spikes.sigma is 0.0"),
        ({"sigma": math.nan}, "spikes.sigma is nan"),
        ({"margin": -1}, "spikes.margin is -1"),
        ({"max_rollbacks": -1}, "spikes.max_rollbacks is -1"),
    ],
)
def test_settings_that_cannot_be(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        SpikeConfig(**settings)
