"""Taking turns, and the figures that are computed from the seconds."""

import pytest

from benchmarks import timing
from benchmarks.peers.serving import seconds_of
from benchmarks.tables import build_table, say_where_we_lose
from benchmarks.timing import interleave, repeats_within, spread, timed, times_faster


def test_runners_take_turns_and_each_waits_until_the_others_sleep(monkeypatch):
    events = []
    monkeypatch.setattr(timing, "sleep", events.append)
    runners = {name: lambda name=name: events.append(name) or len(events) for name in "ab"}
    seconds = interleave(runners, rounds=2, pause=0.5)
    assert events == [0.5, "a", 0.5, "b", 0.5, "a", 0.5, "b"]
    assert seconds == {"a": [2, 6], "b": [4, 8]}


def test_a_ratio_is_taken_within_each_round():
    ours, theirs = [1.0, 10.0, 2.0], [3.0, 30.0, 2.0]  # the machine was slow in the second round, for both
    assert times_faster(ours, theirs) == 3.0
    assert times_faster(theirs, ours) == pytest.approx(1 / 3)


def test_spread_is_half_the_distance_of_the_quartiles_as_a_share_of_the_median():
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)
    assert spread([5.0, 5.0]) == 0.0
    assert spread([5.0]) is None


@pytest.mark.parametrize(("seconds", "repeats"), [(0.3, 1), (0.05, 2), (0.001, 100), (5.0, 1)])
def test_short_work_is_repeated(seconds, repeats):
    assert repeats_within(0.1, seconds) == repeats


def test_seconds_are_those_of_one_call_and_the_first_does_not_count(monkeypatch):
    now, calls = [0.0], []

    def work():
        now[0] += 100.0 if not calls else 2.0  # the first call wakes the threads
        calls.append(1)

    monkeypatch.setattr("benchmarks.peers.serving.time.perf_counter", lambda: now[0])
    assert seconds_of(work, 5) == 2.0
    assert len(calls) == 6
    assert seconds_of(work, 1) == 2.0
    assert len(calls) == 7, "long work is not done more often than it is timed"


def test_a_timed_function_fills_its_burst(monkeypatch):
    now, calls = [0.0], []

    def work():
        now[0] += 0.25
        calls.append(1)

    monkeypatch.setattr("benchmarks.peers.serving.time.perf_counter", lambda: now[0])
    run = timed(work, burst=1.0)
    calls.clear()
    assert run() == 0.25
    assert len(calls) == 1 + 4


def test_losses_are_said_plainly():
    lines = say_where_we_lose([("mid against PyTorch", 0.84), ("cpu against PyTorch", 1.2)])
    assert lines == ["npllm loses: mid against PyTorch, 0.84×"]
    assert "faster one in all 2" in say_where_we_lose([("a", 1.0), ("b", 3.0)])[0]
    assert say_where_we_lose([]) == []


def test_a_figure_that_a_row_lacks_is_a_blank_cell():
    rows = [{"name": "a", "x": 0.0}, {"name": "b"}, {"name": "c", "x": None}]
    table = build_table("", rows, {"who": ("name", "{}"), "how much": ("x", "{:.1f} MB")})
    assert [list(column.cells) for column in table.columns] == [["a", "b", "c"], ["0.0 MB", "", ""]]
