"""The events of a run's ledger as sentences."""

from typing import Any, NamedTuple

from npllm.runs.ledger import Ledger

MOST_EVENTS = 200  # that a page lists


class Event(NamedTuple):
    """time: as the ledger has it."""

    time: str
    what: str


class Events(NamedTuple):
    """listed: the first MOST_EVENTS. n_more: those after them. counts: how often each
    kind occurs. spikes: the steps of all loss spikes."""

    listed: list[Event]
    n_more: int
    counts: dict[str, int]
    spikes: list[int]


def events_of(ledger: Ledger) -> Events:
    """The events of a ledger."""
    events = ledger.events
    counts: dict[str, int] = {}
    for event in events:
        name = NAMES[event["event"]]
        counts[name] = counts.get(name, 0) + 1
    listed = [Event(str(event.get("time", "")), sentence(event)) for event in events[:MOST_EVENTS]]
    spikes = sorted({event["step"] for event in events if "samples" in event})
    return Events(listed, len(events) - len(listed), counts, spikes)


NAMES = {
    "rollback": "rollbacks",
    "left_out": "updates left out",
    "refused": "refused checkpoints",
    "gave_up": "times that training gave up",
    "length": "decisions about the length",
    "extended": "extensions",
    "ended_early": "early ends",
}


def sentence(event: dict[str, Any]) -> str:
    """What an event of the ledger says."""
    match event["event"]:
        case "rollback":
            first, end = event["skipped"]
            return (
                f"Loss spike at step {event['step']}: {event['reason']}. Back to step {event['restored_step']}, "
                f"without the samples {first:,} to {end - 1:,}."
            )
        case "left_out":
            first, end = event["samples"]
            return (
                f"Loss spike at step {event['step']}: {event['reason']}. This update was left out, and with it the "
                f"samples {first:,} to {end - 1:,}."
            )
        case "refused":
            return f"The checkpoint {event['checkpoint']} could not be used: {event['reason']}"
        case "gave_up":
            return f"Training gave up at step {event['step']}: {event['reason']}."
        case "length":
            return (
                f"After step {event['step']} and {event['seconds']:.1f} seconds, the time budget had room for "
                f"{event['steps']:,} updates."
            )
        case "extended":
            return f"The run, which had ended with step {event['step']}, went on for {event['minutes']:g} minutes."
    return f"The run ended early, with step {event['step']}, as the validation loss no longer fell."
