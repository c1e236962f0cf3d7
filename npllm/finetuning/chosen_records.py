"""Choose the records of a file that a stage uses, and report what is odd about them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from rich.console import Console

from npllm.data.fitting import TOO_LONG, Room, fit
from npllm.data.record_file import RecordFile
from npllm.data.records import Labelled
from npllm.tokenizer import Tokenizer

OnBad = Literal["stop", "skip", "truncate"]
R = TypeVar("R")


def fitting_records(
    file: RecordFile[R], on_bad: OnBad, section: str, tokenizer: Tokenizer, room: Room, console: Console
) -> list[R]:
    """Return the records that a stage can use, each short enough for the room.

    Prints a line for each kind of change: prompts that were shortened, records that
    were left out, and records that are repeated.

    on_bad: "stop" raises DataError, which lists the bad records. "skip" leaves them
    out. "truncate" cuts off the beginning of prompts that are too long, and leaves out
    all other bad records.
    section: of the stage's config; the error message names the option in it.
    """
    fitting = fit(file, tokenizer, room, shorten=on_bad == "truncate")
    if on_bad == "truncate":
        whole = dict(zip(file.places, file.records, strict=True))
        n_shorter = sum(whole[place] != record for place, record in zip(fitting.places, fitting.records, strict=True))
        if n_shorter:
            _say(console, f"{file.path}: the beginning of {n_shorter:,} prompts is cut off to fit into {room.name}.")
    return chosen_records(fitting, on_bad, section, console)


def chosen_records(file: RecordFile[R], on_bad: OnBad, section: str, console: Console) -> list[R]:
    """Return the usable records of a file.

    Prints a line about the records that are left out, and one about those that are
    repeated. Raises DataError, which lists the bad records, if on_bad is "stop" or no
    record is usable.
    """
    if on_bad != "stop" and file.bad and file.records:
        _say(console, f"{file.path}: {file.left_out()}.")
        file = replace(file, bad=[])
    shortens = ", truncate shortens those that are too long" if TOO_LONG in {bad.kind for bad in file.bad} else ""
    records = file.checked(f"(--{section}.on_bad skip leaves bad records out{shortens}.)")
    if repeated := len(records) - len(set(records)):
        _say(console, f"{file.path}: {repeated:,} records repeat others; every copy is used.")
    return records


def say_contradictions(file: RecordFile[Labelled], console: Console) -> None:
    """Print a line if texts have more than one label; it names the first of them."""
    places: defaultdict[str, dict[str, str]] = defaultdict(dict)  # text -> label -> place
    for place, record in zip(file.places, file.records, strict=True):
        places[record.text.strip()].setdefault(record.label, place)
    twofold = [labels for labels in places.values() if len(labels) > 1]
    if twofold:
        first = ", ".join(f"{label!r:.80} in {place}" for label, place in twofold[0].items())
        _say(console, f"{file.path}: {len(twofold):,} texts have more than one label; the first one is {first}.")


def say_shared_texts(learnt: Sequence[Labelled], tested: Sequence[Labelled], console: Console) -> None:
    """Print a line if test texts are training texts too: new texts would be harder."""
    texts = {record.text.strip() for record in learnt}
    if shared := sum(record.text.strip() in texts for record in tested):
        _say(console, f"{shared:,} of {len(tested):,} test texts are training texts too; new texts are harder.")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
