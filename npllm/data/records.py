"""Records for fine-tuning: demonstrations, conversations, preferences and labelled texts, read from files and written.

A bad record is an error here, with the file and the line, and not a smaller loss or a NaN hours later.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from npllm.atomic import write_atomically
from npllm.bounded_read import read_bounded
from npllm.errors import ConfigError, DataError
from npllm.reference.random import random_permutation
from npllm.strict_json import parse_json
from npllm.tokenizer.pretokenize import refuse_lone_surrogates

LARGEST_FILE = 1 << 30  # bytes
ROLES = ("system", "user", "assistant")
SPLIT_SITE = 0xDA7A0010  # random stream of the split, apart from those of the sampler and of dropout

Record = TypeVar("Record")


@dataclass(frozen=True)
class Demonstration:
    """What a good answer to a prompt looks like."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Perhaps a system message, then user and assistant in turn, the assistant last."""

    messages: tuple[Message, ...]


# A text, or perhaps a system message, then user and assistant in turn, the user last.
PromptText = str | tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """What a response is asked for."""

    prompt: PromptText


@dataclass(frozen=True)
class Preference:
    """Two responses to a prompt, of which people or a rule prefer one."""

    prompt: PromptText
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Labelled:
    """A text and its class. group: texts of one group (one source file) belong on one side of a split; "" = unknown."""

    text: str
    label: str
    group: str = ""


def read_demonstrations(path: str | PathLike) -> list[Demonstration | Conversation]:
    """Read jsonl whose lines hold `prompt` and `response`, or `messages` (which wins), each with `role` and `content`.

    Other keys are ignored, here and in the readers below. A prompt may be empty. Raises DataError with file and line.
    """
    return _read_jsonl(Path(path), _demonstration)


def read_preferences(path: str | PathLike) -> list[Preference]:
    """Read jsonl whose lines hold `prompt`, `chosen` and `rejected`; prompt: a string, or a list of messages as above.
    Raises DataError with file and line."""
    return _read_jsonl(Path(path), _preference)


def read_prompts(path: str | PathLike) -> list[PromptText]:
    """Read `prompt` from each line of a jsonl file, such as one of demonstrations or preferences. Raises DataError."""
    return _read_jsonl(Path(path), _prompt)


def read_labelled(path: str | PathLike) -> list[Labelled]:
    """Read labelled texts; the ending of the file's name says how they are written.

    .jsonl: `text` and `label` (a string or an integer) in each line. .csv, .tsv: a header line that names the columns
    text and label; fields of .csv may be quoted, those of .tsv are taken as they are. Any other ending: a line is a
    label, white space, and the text. group is "". Raises DataError with file and line, also for fewer than two labels.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".jsonl":
            records = _read_jsonl(path, _labelled)
        case ".csv" | ".tsv" as ending:
            records = _not_empty(path, _labelled_rows(path, "," if ending == ".csv" else "\t"))
        case _:
            records = _not_empty(path, _labelled_lines(path))
    if len({record.label for record in records}) == 1:
        raise DataError(f"{path} has only the label {records[0].label!r:.80}: give texts of at least two classes.")
    return records


def write_records(path: str | PathLike, records: Sequence[Any]) -> None:
    """Write records as jsonl that the readers read back equal (a Labelled without its group), whole or not at all.

    Raises ResourceError when the file cannot be written.
    """
    text = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, text.encode("utf-8"))


def split_records(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, val): a random share of val_fraction, rounded, is held out, at least one record on each side.

    The same records and seed give the same split; each side keeps the order of the records. Raises ConfigError for a
    fraction outside (0, 1), DataError for fewer than two records.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}: give a number between 0 and 1, such as 0.05.")
    if len(records) < 2:
        raise DataError(f"the data has {len(records)} records, too few to train and validate on: give at least two.")
    n_val = min(max(round(len(records) * val_fraction), 1), len(records) - 1)
    order = random_permutation(len(records), seed=seed, site=SPLIT_SITE).tolist()
    val, train = sorted(order[:n_val]), sorted(order[n_val:])
    return [records[i] for i in train], [records[i] for i in val]


def _demonstration(fields: dict, place: str) -> Demonstration | Conversation:
    if "messages" in fields:
        return _conversation(fields["messages"], place)
    demonstration = Demonstration(_string(fields, "prompt", place), _string(fields, "response", place))
    _refuse_empty(demonstration.prompt + demonstration.response, "prompt and response", place)
    return demonstration


def _conversation(entries: object, place: str) -> Conversation:
    return Conversation(_messages(entries, place, last="assistant"))


def _messages(entries: object, place: str, last: Literal["user", "assistant"]) -> tuple[Message, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{place}: messages must be a list of objects with role and content.")
    messages = tuple(Message(_string(entry, "role", place), _string(entry, "content", place)) for entry in entries)
    roles = [message.role for message in messages]
    for role in roles:
        if role not in ROLES:
            raise DataError(f"{place}: the role {role!r:.80} is unknown: write {', '.join(ROLES[:-1])} or {ROLES[-1]}.")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns[-1:] != [last] or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise DataError(
            f"{place}: the roles are {', '.join(roles)[:200] or 'missing'}: after at most one system message, user and "
            f"assistant must take turns, the user first and the {last} last."
        )
    _refuse_empty("".join(message.content for message in messages), "the content of every message", place)
    return messages


def _prompt(fields: dict, place: str) -> PromptText:
    if isinstance(fields.get("prompt"), list):
        return _messages(fields["prompt"], place, last="user")
    return _string(fields, "prompt", place)


def _preference(fields: dict, place: str) -> Preference:
    responses = (_string(fields, name, place) for name in ("chosen", "rejected"))
    preference = Preference(_prompt(fields, place), *responses)
    if preference.chosen == preference.rejected:
        raise DataError(f"{place}: chosen and rejected are equal, which says nothing: remove the line.")
    return preference


def _labelled(fields: dict, place: str) -> Labelled:
    if type(fields.get("label")) is int:
        fields = {**fields, "label": str(fields["label"])}
    return _checked_label(_string(fields, "text", place), _string(fields, "label", place), place)


def _labelled_rows(path: Path, delimiter: str) -> Iterator[Labelled]:
    text = io.StringIO(_read_text(path), newline="")
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    rows = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    try:
        for row in filter(None, rows):
            place = f"{path} line {rows.line_num}"
            if not header:
                header = _header(row, place)
            elif len(row) != len(header):
                raise DataError(f"{place} has {len(row)} fields but the header has {len(header)}: quote or add fields.")
            else:
                fields = dict(zip(header, row, strict=True))
                yield _checked_label(fields["text"], fields["label"], place)
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num} cannot be read ({error}): correct its quotes.") from None


def _header(row: list[str], place: str) -> list[str]:
    header = [name.strip() for name in row]
    for name in ("text", "label"):
        if header.count(name) != 1:
            raise DataError(
                f"{place}: the header must name text and label once each, but is {', '.join(header)!r:.200}."
            )
    return header


def _labelled_lines(path: Path) -> Iterator[Labelled]:
    for line, place in _lines(path):
        label, text = (*line.split(maxsplit=1), "")[:2]
        yield _checked_label(text.rstrip(), label, place)


def _checked_label(text: str, label: str, place: str) -> Labelled:
    _refuse_empty(text, "the text", place)
    _refuse_empty(label, "the label", place)
    return Labelled(text, label)


def _read_jsonl(path: Path, record: Callable[[dict, str], Record]) -> list[Record]:
    return _not_empty(path, (record(_fields(line, place), place) for line, place in _lines(path)))


def _not_empty(path: Path, records: Iterable[Record]) -> list[Record]:
    records = list(records)
    if not records:
        raise DataError(f"{path} holds no records: give a file with at least one.")
    return records


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line, how a message calls its place) of every line with more than white space. Only a line feed ends a line:
    JSON lets other separators, such as U+2028, stand inside a string."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield line, f"{path} line {number}"


def _read_text(path: Path) -> str:
    data = read_bounded(path, LARGEST_FILE)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # the mark with which some spreadsheets begin a file
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line} is not UTF-8 (invalid byte 0x{data[error.start]:02x}): "
            "convert it to UTF-8, for example with iconv."
        ) from None


def _fields(line: str, place: str) -> dict:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise DataError(f"{place} is not valid JSON ({error}): write one object a line.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{place} is no JSON object: write one object a line.")
    return fields


def _string(fields: dict, name: str, place: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        problem = f"holds {value!r:.80}" if name in fields else "is missing"
        raise DataError(f"{place}: the field {name!r} {problem}: write it as a string.")
    try:
        refuse_lone_surrogates(value)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    return value


def _refuse_empty(text: str, name: str, place: str) -> None:
    if not text.strip():
        raise DataError(f"{place}: {name} is empty: write it or remove the line.")
