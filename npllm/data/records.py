"""Records: demonstrations, conversations, preferences and labelled texts.

They are read from files and written to them. A bad record is an error that names the
file and the line; otherwise it would show as a wrong loss or a NaN hours later. The
functions `read_...` raise it. `scan` and `scan_labelled` return which records are bad,
for callers that can do without them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from npllm.data.record_file import Record, RecordFile, Unusable, sort_out
from npllm.data.rows import LARGEST_FILE, WRONG_FIELDS, fields_of, lines, table_rows, text_of
from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import parse_json
from npllm.files.text_format import decode
from npllm.files.user_path import user_path
from npllm.tokenizer.pretokenize import refuse_lone_surrogates

ROLES = ("system", "user", "assistant")
WITH_FIELDS = (".jsonl", ".json", ".csv", ".tsv")  # suffixes of files whose records have named fields


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a good response to it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages: at most one of the system, then user and assistant in turn.

    The assistant's is the last.
    """

    messages: tuple[Message, ...]


# A text; or at most one system message, then user and assistant in turn, the user last.
PromptText = str | tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """What the model should respond to."""

    prompt: PromptText


@dataclass(frozen=True)
class Preference:
    """A prompt and two responses, of which people or a rule prefer one."""

    prompt: PromptText
    chosen: str
    rejected: str


def parts_of(record: Demonstration | Conversation | Preference | PromptText) -> tuple[PromptText, tuple[str, ...]]:
    """Return the prompt of a record and the responses to it.

    In a conversation the response is what the assistant says last.
    """
    match record:
        case Demonstration(prompt, response):
            return prompt, (response,)
        case Conversation(messages):
            return messages[:-1], (messages[-1].content,)
        case Preference(prompt, chosen, rejected):
            return prompt, (chosen, rejected)
    return record, ()


@dataclass(frozen=True)
class Labelled:
    """A text and its class.

    group: texts of one group (one source file) belong on one side of a split; "" =
    unknown.
    """

    text: str
    label: str
    group: str = ""


def read_demonstrations(path: str | PathLike) -> list[Demonstration | Conversation]:
    """Read jsonl whose lines hold `prompt` and `response`, or `messages`.

    `messages` is a list of objects with `role` and `content`; where a line has it, it
    is used. `instruction` and `input` may stand for `prompt`, and then `output` for
    `response`. Other keys are ignored. A prompt may be empty. Here and in the readers
    below a .json file may hold one list of the same objects, and a .csv or .tsv file a
    row for each, with the columns of COLUMNS. Raises DataError that names each bad line
    of the file.
    """
    return scan(path, demonstration).checked()


def read_preferences(path: str | PathLike) -> list[Preference]:
    """Read jsonl whose lines hold `prompt`, `chosen` and `rejected`.

    prompt: a string, or a list of messages as above. Raises DataError that names each
    bad line.
    """
    return scan(path, preference).checked()


def read_prompts(path: str | PathLike) -> list[PromptText]:
    """Read `prompt` from each line of a jsonl file, for example one of demonstrations.

    Raises DataError that names each bad line.
    """
    return scan(path, prompt).checked()


def read_labelled(path: str | PathLike) -> list[Labelled]:
    """Read labelled texts as `scan_labelled` does.

    Raises DataError that names each bad line.
    """
    return scan_labelled(path).checked()


def scan(path: str | PathLike, record: Callable[[dict], Record]) -> RecordFile[Record]:
    """Return the records of a jsonl file, of a .json file that holds one list, or of a
    .csv or .tsv file.

    record: makes a record from the fields of a line; a function in COLUMNS.
    """
    path = user_path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return sort_out(path, table_rows(path, COLUMNS[record]), lambda row: record(fields_of(row)))
    items = _listed(path) if path.suffix.lower() == ".json" else lines(path)
    return sort_out(path, items, lambda item: record(json_fields(item)))


def scan_labelled(path: str | PathLike) -> RecordFile[Labelled]:
    """Return the labelled texts of a file, whose suffix says how they are written.

    .jsonl, .json: `text` and `label` (a string or an integer) in each line or object.
    .csv, .tsv: a header line that names the columns text and label (`table_rows`). Any
    other suffix: a line holds a label, white space, and the text. White space around a
    label is removed. group is "".
    """
    path = user_path(path)
    if path.suffix.lower() in WITH_FIELDS:
        return scan(path, labelled)
    return sort_out(path, lines(path), _labelled_line)


def scan_texts(path: str | PathLike) -> RecordFile[str]:
    """Return the texts of a file, whose suffix says how they are written.

    They are the field or column `text`, as in `scan_labelled`, where other fields are
    ignored. In a file with any other suffix each line is a text, without the white
    space around it; blank lines are left out.
    """
    path = user_path(path)
    if path.suffix.lower() in WITH_FIELDS:
        return scan(path, text_in)
    return sort_out(path, lines(path), lambda line: text_of(line).strip())


def scan_responses(path: str | PathLike) -> RecordFile[Demonstration | Conversation | Preference]:
    """Return the prompts and responses of a file, to be judged.

    They are demonstrations, conversations and preferences as the readers above take
    them. A .csv or .tsv file has the columns prompt and response.
    """
    return scan(path, _judged)


def write_records(path: str | PathLike, records: Sequence[Any]) -> None:
    """Write records as jsonl, whole or not at all.

    The readers return equal records (a Labelled without its group). Raises
    ResourceError when the file cannot be written.
    """
    text = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, text.encode("utf-8"))


def demonstration(fields: dict) -> Demonstration | Conversation:
    """Return the demonstration or conversation in the fields of a line.

    Raises Unusable, as the functions below do.
    """
    if "messages" in fields:
        return Conversation(_messages(fields["messages"], last="assistant"))
    made = Demonstration(_string_prompt(fields), string_field(fields, "output" if _is_alpaca(fields) else "response"))
    _refuse_empty(made.prompt + made.response, "prompt and response")
    return made


def preference(fields: dict) -> Preference:
    """Return the preference in the fields of a line."""
    responses = (string_field(fields, name) for name in ("chosen", "rejected"))
    made = Preference(prompt(fields), *responses)
    if made.chosen == made.rejected:
        raise Unusable("equal pairs", "chosen and rejected are equal, which says nothing; remove the line.")
    return made


def prompt(fields: dict) -> PromptText:
    """Return the prompt in the fields of a line."""
    if isinstance(fields.get("prompt"), list):
        return _messages(fields["prompt"], last="user")
    return _string_prompt(fields)


def _string_prompt(fields: dict) -> str:
    """The prompt.

    In Alpaca's form: the instruction and its input, each with a line feed.
    """
    if not _is_alpaca(fields):
        return string_field(fields, "prompt")
    parts = [string_field(fields, name) for name in ("instruction", "input") if name in fields]
    return "".join(f"{part}\n" for part in parts if part.strip())


def _is_alpaca(fields: dict) -> bool:
    return "instruction" in fields and "prompt" not in fields


def text_in(fields: dict) -> str:
    """Return the text in the fields of a line."""
    text = string_field(fields, "text")
    _refuse_empty(text, "the text")
    return text


def _judged(fields: dict) -> Demonstration | Conversation | Preference:
    return preference(fields) if "chosen" in fields else demonstration(fields)


def labelled(fields: dict) -> Labelled:
    """Return the labelled text in the fields of a line."""
    if type(fields.get("label")) is int:
        fields = {**fields, "label": str(fields["label"])}
    return _checked_label(string_field(fields, "text"), string_field(fields, "label"))


# The columns that a .csv or .tsv file needs, by what makes a record of a row.
COLUMNS: dict[Callable[[dict], Any], tuple[str, ...]] = {
    demonstration: ("prompt", "response"),
    preference: ("prompt", "chosen", "rejected"),
    prompt: ("prompt",),
    text_in: ("text",),
    labelled: ("text", "label"),
    _judged: ("prompt", "response"),
}


def _messages(entries: object, last: Literal["user", "assistant"]) -> tuple[Message, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unusable(
            "without messages", "the messages have another form; write a list of objects with role and content."
        )
    messages = tuple(Message(string_field(entry, "role"), string_field(entry, "content")) for entry in entries)
    roles = [message.role for message in messages]
    for role in roles:
        if role not in ROLES:
            known = f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
            raise Unusable("with other roles", f"the role {role!r:.80} is unknown; write {known}.")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns[-1:] != [last] or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise Unusable(
            "with turns in another order",
            f"the roles are {', '.join(roles)[:200] or 'missing'}; after at most one system message, let user and "
            f"assistant take turns, the user first and the {last} last.",
        )
    _refuse_empty("".join(message.content for message in messages), "the content of every message")
    return messages


def _labelled_line(line: bytes) -> Labelled:
    label, text = (*text_of(line).split(maxsplit=1), "")[:2]
    return _checked_label(text.rstrip(), label)


def _checked_label(text: str, label: str) -> Labelled:
    _refuse_empty(text, "the text")
    _refuse_empty(label, "the label")
    return Labelled(text, label.strip())


def _listed(path: Path) -> Iterator[tuple[str, object]]:
    """(place, item) of each item of a JSON list."""
    try:
        items = parse_json(decode(path, read_bounded(path, LARGEST_FILE)))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); correct it, or save it again.") from None
    if not isinstance(items, list):
        raise DataError(f"{path} is no JSON list; write a list of objects, or one object a line into a .jsonl file.")
    return ((f"record {number}", item) for number, item in enumerate(items, 1))


def json_fields(item: object) -> dict:
    """Return the fields of a line, which is JSON, or of an item of a list. Raises
    Unusable."""
    try:
        fields = parse_json(text_of(item)) if isinstance(item, bytes) else item
    except ValueError as error:
        raise Unusable("that are not JSON", f"it is not valid JSON ({error}); write one object a line.") from None
    if not isinstance(fields, dict):
        raise Unusable("that are not JSON objects", "it is no JSON object; write one object a line.")
    return fields


def string_field(fields: dict, name: str) -> str:
    """Return a field that holds a text. Raises Unusable for any other field."""
    value = fields.get(name)
    if not isinstance(value, str):
        problem = f"holds {value!r:.80}" if name in fields else "is missing"
        raise Unusable(WRONG_FIELDS, f"the field {name!r} {problem}; write it as a string.")
    try:
        refuse_lone_surrogates(value)
    except DataError as error:
        raise Unusable("with half a character", str(error)) from None
    return value


def _refuse_empty(text: str, name: str) -> None:
    if not text.strip():
        raise Unusable("empty", f"{name} is empty; write it or remove the line.")
