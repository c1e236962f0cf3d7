"""A time budget becomes a number of updates while the run goes on."""

import json

import pytest
from small_runs import pretrain_arguments, run, state_digests, stop_after, summary, write_text

from npllm.optim import BatchConfig
from npllm.runs.config_file import load_config
from npllm.runs.ledger import Ledger
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.length import RunLength


def trained(tmp_path, seconds_of, minutes=1.0, **batch):
    """Make updates until the length is reached, each of the given seconds. Returns the
    decisions (step, steps), and the seconds at the end."""
    config = RunConfig(batch=BatchConfig(**batch or {"size": 4}), train=TrainConfig(minutes=minutes))
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    length, step, seconds = RunLength(config, ledger), 0, 0.0
    while not length.is_over(step):
        seconds += seconds_of(step, seconds)
        step += 1
        length.decide(step, seconds)
    return [(event["step"], event["steps"]) for event in ledger.schedule], seconds


def test_at_an_even_speed_nothing_changes_after_the_first_decision(tmp_path):
    """60 s have room for 120 updates of half a second; the decisions come after 5, 25,
    50, 75 and 90 %."""
    decided, seconds = trained(tmp_path, lambda step, seconds: 0.5)
    assert decided == [(6, 120), (30, 120), (60, 120), (90, 120), (108, 120)]
    assert seconds == 60.0


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.6, 0.74])
def test_the_budget_holds_where_the_speed_changes_by_half(tmp_path, share, factor):
    """Within 5 %, as long as at least one decision has seen enough of the new speed."""
    _, seconds = trained(tmp_path, lambda step, seconds: 0.1 if seconds < share * 60 else 0.1 * factor)
    assert seconds == pytest.approx(60.0, rel=0.05)


def test_with_a_ramp_the_time_of_an_update_follows_its_sequences(tmp_path):
    """A second for each sequence; 1, 1, 2, 2, 3, 3, 4, 4, ...: 6 updates take 12 s, and
    12 more of 4 s take the other 48."""
    decided, seconds = trained(
        tmp_path, lambda step, seconds: float([1, 1, 2, 2, 3, 3][step] if step < 6 else 4),
        size=4, micro_size=1, ramp_start=1, ramp_steps=6,
    )  # fmt: skip
    assert {steps for _, steps in decided} == {18}
    assert seconds == 60.0


def test_a_run_whose_first_update_takes_the_whole_budget_ends_with_it(tmp_path):
    assert trained(tmp_path, lambda step, seconds: 100.0) == ([(1, 1)], 100.0)


def test_the_last_update_is_the_one_that_ends_nearest_to_the_budget(tmp_path):
    assert trained(tmp_path, lambda step, seconds: 7.0) == ([(1, 9), (3, 9), (5, 9), (7, 9), (8, 9)], 63.0)
    (tmp_path / "ledger.jsonl").unlink()
    assert trained(tmp_path, lambda step, seconds: 8.5)[1] == 59.5


def test_what_is_known_depends_on_the_update_and_not_on_when_it_is_asked(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    length = RunLength(RunConfig(), ledger)
    assert length.phase(0).end is length.phase(1000).end is None
    ledger.decided_length(10, 200, 9.0)
    ledger.decided_length(50, 180, 45.0)
    assert [length.phase(step).end for step in (0, 9, 10, 49, 50, 500)] == [None, None, 200, 200, 180, 180]
    assert not length.is_over(180), "three decisions are still to come"


def test_a_number_of_steps_needs_no_decision(tmp_path):
    length = RunLength(RunConfig(train=TrainConfig(steps=7)))
    assert (length.phase(0).end, length.is_over(6), length.is_over(7)) == (7, False, True)
    length.decide(3, 1e9)


def test_steps_that_the_user_set_later_replace_the_decisions(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", writable=True)
    for seconds in (10.0, 50.0, 100.0, 140.0, 170.0):
        ledger.decided_length(int(seconds), 180, seconds)
    same, more = (RunLength(RunConfig(train=TrainConfig(steps=steps)), ledger) for steps in (180, 250))
    assert (same.phase(5).end, same.phase(60).end, same.is_over(180)) == (None, 180, True)
    assert (more.phase(5).end, more.phase(200).end, more.is_over(180)) == (250, 250, False)


@pytest.mark.usefixtures("quick", "clock")
@pytest.mark.parametrize("stops", [[1], [2, 11], [7, 8, 9]])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, stops):
    """20 s are 20 updates. The decisions come after 1, 5, 10, 15 and 18."""
    settings = {"train__steps": None, "train__minutes": 1 / 3, "optim__warmup_steps": 8, "train__checkpoint_every": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    text = write_text(tmp_path)
    assert run(*pretrain_arguments(text, whole, **settings)) == 0
    assert [event["steps"] for event in Ledger(whole / "ledger.jsonl").schedule] == [20] * 5
    stop_after(monkeypatch, *stops)
    assert run(*pretrain_arguments(text, parts, **settings)) == 130
    for _ in stops[1:]:
        assert run("resume", parts) == 130
    assert run("resume", parts) == 0
    assert state_digests(parts) == state_digests(whole)
    assert summary(parts)["steps"] == load_config(parts / "config.toml", RunConfig).train.steps == 20
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lr"] < lines[1]["lr"] == max(line["lr"] for line in lines)  # a tenth of 20 updates warms up
