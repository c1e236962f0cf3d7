"""What a stage learns from, of a file with good and bad records."""

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
    """The records that a stage can learn from and has room for, and a line about those that are not as in the file.

    on_bad: "stop" raises DataError that lists the bad ones; "skip" leaves them out; "truncate" shortens the prompts of
    those that are too long, and leaves the others out. section: of the stage's config, for the message.
    """
    fitting = fit(file, tokenizer, room, shorten=on_bad == "truncate")
    if on_bad == "truncate":
        whole = dict(zip(file.places, file.records, strict=True))
        n_shorter = sum(whole[place] != record for place, record in zip(fitting.places, fitting.records, strict=True))
        if n_shorter:
            _say(console, f"{file.path}: {n_shorter:,} prompts lose their beginnings, to fit into {room.name}.")
    return chosen_records(fitting, on_bad, section, console)


def chosen_records(file: RecordFile[R], on_bad: OnBad, section: str, console: Console) -> list[R]:
    """The usable records, and a line about the others and about those that are there twice."""
    if on_bad != "stop" and file.bad and file.records:
        _say(console, f"{file.path}: {file.left_out()}.")
        file = replace(file, bad=[])
    shortens = ", truncate shortens those that are too long" if TOO_LONG in {bad.kind for bad in file.bad} else ""
    records = file.checked(f"(--{section}.on_bad skip leaves bad records out{shortens}.)")
    if repeated := len(records) - len(set(records)):
        _say(console, f"{file.path}: {repeated:,} records repeat others and count each time.")
    return records


def say_contradictions(file: RecordFile[Labelled], console: Console) -> None:
    """A line about texts that a file gives two labels, with the first of them."""
    places: defaultdict[str, dict[str, str]] = defaultdict(dict)  # text -> label -> place
    for place, record in zip(file.places, file.records, strict=True):
        places[record.text.strip()].setdefault(record.label, place)
    twofold = [labels for labels in places.values() if len(labels) > 1]
    if twofold:
        first = ", ".join(f"{label!r:.80} in {place}" for label, place in twofold[0].items())
        _say(console, f"{file.path}: {len(twofold):,} texts have more than one label; the first of them is {first}.")


def say_shared_texts(learnt: Sequence[Labelled], tested: Sequence[Labelled], console: Console) -> None:
    """A line about test texts that are learnt from too, which makes a test easier than what comes later."""
    texts = {record.text.strip() for record in learnt}
    if shared := sum(record.text.strip() in texts for record in tested):
        _say(console, f"{shared:,} of {len(tested):,} test texts are learnt from as well, which flatters the accuracy.")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
