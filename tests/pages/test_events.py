"""The sentences about the events of a ledger."""

import json

import pytest

from npllm.pages import events
from npllm.pages.events import NAMES, events_of
from npllm.runs.ledger import FIELDS, Ledger

SPIKE = {"loss": 9.0, "grad_norm": 3.0, "tokens": 4000, "samples": [1000, 1008], "reason": "the loss is 9.0"}
LINES = {
    "rollback": SPIKE | {"step": 40, "restored_step": 20, "skipped": [1000, 1008]},
    "left_out": SPIKE | {"step": 50},
    "refused": {"checkpoint": "step-00000020.h5", "reason": "its hash differs."},
    "gave_up": SPIKE | {"step": 60},
    "length": {"step": 10, "steps": 2500, "seconds": 9.04},
    "extended": {"step": 70, "minutes": 5.0, "seconds": 100.0},
    "ended_early": {"step": 80, "steps": 90},
}
SENTENCES = [
    "Loss spike at step 40: the loss is 9.0. Back to step 20, without the samples 1,000 to 1,007.",
    "Loss spike at step 50: the loss is 9.0. This update was left out, and with it the samples 1,000 to 1,007.",
    "The checkpoint step-00000020.h5 could not be used: its hash differs.",
    "Training gave up at step 60: the loss is 9.0.",
    "After step 10 and 9.0 seconds, the time budget had room for 2,500 updates.",
    "The run, which had ended with step 70, went on for 5 minutes.",
    "The run ended early, with step 80, as the validation loss no longer fell.",
]


@pytest.fixture
def ledger(tmp_path):
    lines = ({"event": name, "time": "now"} | fields for name, fields in LINES.items())
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Ledger(tmp_path / "ledger.jsonl")


def test_every_kind_of_event_has_its_sentence(ledger):
    """Fails if an event of the ledger is unknown here, or a number is another one."""
    assert LINES.keys() == NAMES.keys() == FIELDS.keys()
    found = events_of(ledger)
    assert [each.what for each in found.listed] == SENTENCES
    assert found.counts == dict.fromkeys(NAMES.values(), 1)
    assert found.spikes == [40, 50, 60]


def test_of_many_events_the_first_are_listed_and_all_are_counted(ledger, monkeypatch):
    monkeypatch.setattr(events, "MOST_EVENTS", 2)
    found = events_of(ledger)
    assert (len(found.listed), found.n_more, sum(found.counts.values())) == (2, 5, 7)
    assert found.spikes == [40, 50, 60]
