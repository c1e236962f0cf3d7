"""Learning rate and batch size, compared with numbers computed by hand."""

from math import cos, radians, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.optim import BatchConfig, OptimConfig, batch_size, learning_rate, warmup_updates

DECAYS = ["cosine", "linear", "constant", "inverse_sqrt", "wsd"]


def rates(n_updates, **fields):
    config = OptimConfig(**fields)
    return [learning_rate(update, n_updates, config) for update in range(n_updates)]


HALF_ROOT_3 = sqrt(3) / 2

# Peak 8, end 2, two updates of warm-up: 4, 8. Then 19 updates, the first at the peak
# and the last at the end.
AFTER_WARMUP = {
    "linear": [8.0 - k / 3 for k in range(19)],
    # 5 + 3 cos of 0, 10, 20, ... 180 degrees
    "cosine": [5.0 + 3.0 * cos(radians(10 * k)) for k in range(19)],
    "constant": [8.0] * 19,
    # 8 sqrt(2 / n) of the update n = 3, 4, ... 21
    "inverse_sqrt": [8.0 * sqrt(2.0 / n) for n in range(3, 22)],
    # a fifth of 21 updates is 4: the peak up to update 16 of 0 ... 20, then equal steps
    "wsd": [8.0] * 15 + [6.5, 5.0, 3.5, 2.0],
}


@pytest.mark.parametrize("decay", DECAYS)
def test_whole_schedule(decay):
    expected = [4.0, 8.0, *AFTER_WARMUP[decay]]
    assert rates(21, lr=8.0, min_lr=2.0, warmup_steps=2, decay=decay) == pytest.approx(expected, rel=1e-14)


def test_cosine_at_thirds():
    expected = [8.0, 5 + 3 * HALF_ROOT_3, 6.5, 5.0, 3.5, 5 - 3 * HALF_ROOT_3, 2.0]
    assert rates(7, lr=8.0, min_lr=2.0, warmup_steps=0) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize(("n_updates", "warmup_steps"), [(2, 0), (10, 0), (1000, 0), (1000, 100), (12, 1)])
def test_last_update_has_exactly_min_lr(decay, n_updates, warmup_steps):
    schedule = rates(n_updates, lr=3e-4, min_lr=3e-5, warmup_steps=warmup_steps, decay=decay)
    assert schedule[-1] == 3e-5
    assert schedule[warmup_steps] == pytest.approx(3e-4, rel=1e-15)


@pytest.mark.parametrize("decay", DECAYS)
def test_last_stair_of_the_warmup_is_exactly_the_peak(decay):
    schedule = rates(70, lr=7e-4, warmup_steps=7, decay=decay)
    assert schedule[6] == 7e-4
    assert schedule[0] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("n_updates", "warmup_steps", "expected"),
    [(1, 20, 0), (9, 20, 0), (10, 20, 1), (26, 20, 2), (199, 20, 19), (200, 20, 20), (9999, 20, 20), (50, 3, 3)],
)
def test_warm_up_is_at_most_a_tenth_of_the_run(n_updates, warmup_steps, expected):
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=warmup_steps)
    assert warmup_updates(n_updates, config) == expected
    schedule = [learning_rate(update, n_updates, config) for update in range(n_updates)]
    assert schedule.index(1.0) == max(0, expected - 1)


def test_of_a_run_without_a_length_no_warm_up_is_cut():
    assert warmup_updates(None, OptimConfig(warmup_steps=100)) == 100


@given(
    decay=st.sampled_from(DECAYS),
    n_updates=st.integers(1, 40) | st.integers(1, 2000),
    warmup_steps=st.integers(0, 300),
    lr=st.floats(1e-6, 1.0),
    share=st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0.0, 1.0),
)
def test_a_run_of_any_length_has_its_learning_rate(decay, n_updates, warmup_steps, lr, share):
    """So has a run of one update. The last of several updates has exactly min_lr."""
    schedule = rates(n_updates, lr=lr, min_lr=lr * share, warmup_steps=warmup_steps, decay=decay)
    assert max(schedule) == lr
    assert schedule[0] > 0.0
    if n_updates > 1 and decay in ("cosine", "linear", "wsd"):
        assert schedule[-1] == lr * share


def test_inverse_sqrt_stops_at_min_lr():
    assert rates(200, lr=1.0, min_lr=0.1, warmup_steps=1, decay="inverse_sqrt")[98:101] == pytest.approx(
        [1 / sqrt(99), 0.1, 0.1]
    )


@pytest.mark.parametrize(("options", "n_decays"), [({}, 20), ({"cooldown": 0.5}, 50), ({"cooldown": 1.0}, 89)])
def test_wsd_decays_over_the_share_that_cooldown_says(options, n_decays):
    """By default over the last fifth, and never before the warm-up has ended."""
    schedule = rates(100, lr=1.0, min_lr=0.0, warmup_steps=10, decay="wsd", **options)
    assert schedule[10 : 100 - n_decays] == [1.0] * (90 - n_decays)
    assert schedule[100 - n_decays :] == pytest.approx([1 - k / n_decays for k in range(1, n_decays + 1)])


def test_beyond_the_last_update_the_rate_stays():
    """In a run that a user makes longer, the rate neither rises nor falls again."""
    for decay in ("cosine", "linear", "wsd"):
        config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=2, decay=decay)
        assert learning_rate(500, 20, config) == pytest.approx(0.1, rel=1e-15)


@given(
    decay=st.sampled_from(DECAYS),
    n_updates=st.integers(1, 300),
    warmup_steps=st.integers(0, 100),
    lr=st.floats(1e-6, 1.0),
    share=st.floats(0.0, 1.0),
)
def test_rate_climbs_then_falls_between_its_bounds(decay, n_updates, warmup_steps, lr, share):
    schedule = rates(n_updates, lr=lr, min_lr=lr * share, warmup_steps=warmup_steps, decay=decay)
    warmup = min(warmup_steps, n_updates // 10)
    up, down = schedule[:warmup], schedule[warmup:]
    assert up == sorted(up)
    assert all(0.0 < rate <= lr for rate in up)
    slack = 1e-15 * lr
    assert all(before >= after - slack for before, after in zip(down, down[1:], strict=False))
    assert all(lr * share - slack <= rate <= lr + slack for rate in down)


def sizes(n_updates, **fields):
    config = BatchConfig(**fields)
    return [batch_size(update, config) for update in range(n_updates)]


def test_a_batch_without_a_ramp_is_constant():
    assert sizes(3, size=10, micro_size=4) == [10, 10, 10]
    assert sizes(3, size=10, micro_size=4, ramp_steps=2) == [10, 10, 10]
    assert sizes(3, size=10, micro_size=4, ramp_start=2) == [10, 10, 10]


def test_ramp():
    """From 4 to 20 in 8 updates, the batch grows by 2 in each. It is rounded down to
    whole micro-batches, but never below the start."""
    assert sizes(10, size=20, micro_size=1, ramp_start=4, ramp_steps=8) == [4, 6, 8, 10, 12, 14, 16, 18, 20, 20]
    assert sizes(10, size=20, micro_size=4, ramp_start=4, ramp_steps=8) == [4, 4, 8, 8, 12, 12, 16, 16, 20, 20]
    assert sizes(10, size=20, micro_size=6, ramp_start=4, ramp_steps=8) == [4, 6, 6, 6, 12, 12, 12, 18, 20, 20]
    assert sizes(10, size=20, micro_size=32, ramp_start=4, ramp_steps=8) == [4] * 8 + [20, 20]


@given(
    size=st.integers(1, 200),
    micro_size=st.integers(1, 250),
    start=st.integers(1, 200),
    ramp_steps=st.integers(0, 60),
)
def test_ramp_is_monotone_and_in_bounds(size, micro_size, start, ramp_steps):
    start = min(start, size)
    ramp = sizes(ramp_steps + 3, size=size, micro_size=micro_size, ramp_start=start, ramp_steps=ramp_steps)
    assert all(1 <= n <= size for n in ramp)
    assert ramp == sorted(ramp)
    assert ramp[-3:] == [size] * 3
    assert all(n % micro_size == 0 or n == start for n in ramp[:ramp_steps])
