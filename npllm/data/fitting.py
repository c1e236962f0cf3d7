"""Which records fit the model's context, and how longer prompts are shortened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

from npllm.data.prompt_format import PromptFormat
from npllm.data.record_file import RecordFile, Unusable
from npllm.data.records import Conversation, Message, PromptText, parts_of
from npllm.errors import DataError
from npllm.tokenizer import Tokenizer

TOO_LONG = "too long"  # the kind of the records that can be shortened

R = TypeVar("R")


class Room(NamedTuple):
    """How many tokens a prompt and its longest response with stop token may have.

    name: what messages call this number. mend: what makes it larger.
    """

    tokens: int
    name: str
    mend: str = "use a model with a larger model.block_size"


def fit(file: RecordFile[R], tokenizer: Tokenizer, room: Room, *, shorten: bool) -> RecordFile[R]:
    """Return the file with unusable records moved to the bad ones.

    A record is unusable when it is too long, or when it has characters that the
    tokenizer lacks. With `shorten`, the beginning of the prompt is cut off instead, so
    that every response stays whole. A record whose response alone is too long stays
    bad.
    """
    return file.map(lambda record: _fitting(record, tokenizer, room, shorten))


def _fitting(record: R, tokenizer: Tokenizer, room: Room, shorten: bool) -> R:
    prompt, responses = parts_of(record)
    with lacking_characters():
        asked = PromptFormat(tokenizer)
        of_prompt = len(asked.encode(prompt))
        of_response = max((len(asked.encode_response(text)) for text in responses), default=0)
    if of_prompt + of_response <= room.tokens:
        return record
    shorter = shortened(prompt, tokenizer, room.tokens - of_response) if shorten else None
    if shorter is None:
        raise Unusable(
            TOO_LONG,
            f"it has {of_prompt + of_response} tokens, more than {room.name} = {room.tokens}; shorten or remove it, or "
            f"{room.mend}.",
        )
    return _with_prompt(record, shorter)


@contextmanager
def lacking_characters() -> Iterator[None]:
    """In the block, a text that the tokenizer cannot encode is an Unusable record."""
    try:
        yield
    except DataError as error:
        raise Unusable("with characters that the tokenizer lacks", str(error)) from None


def shortened(prompt: PromptText, tokenizer: Tokenizer, most: int) -> PromptText | None:
    """Return the end of a prompt, at most `most` tokens long.

    Return None where even an empty prompt has more.

    In a conversation the oldest turns are dropped first, each question with its answer,
    and then the beginning of the last question.
    """
    asked = PromptFormat(tokenizer)
    if isinstance(prompt, str):
        around = len(asked.encode(prompt)) - len(tokenizer.encode(prompt))
        return _end(prompt, tokenizer, most - around) if most >= len(asked.encode("")) else None
    system, turns = prompt[: prompt[0].role == "system"], prompt[prompt[0].role == "system" :]
    while len(turns) > 1 and len(asked.encode(system + turns)) > most:
        turns = turns[2:]
    without_text = (*system, Message("user", ""))
    left = most - len(asked.encode(without_text))
    return None if left < 0 else (*system, *turns[:-1], Message("user", _end(turns[-1].content, tokenizer, left)))


def _end(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The end of a text, at most `most` tokens long."""
    ids = tokenizer.encode(text)
    while len(ids) > most:  # the rest may be encoded differently, but it is shorter each time
        kept = tokenizer.decode_bytes(ids[len(ids) - most :])
        text = kept.decode("utf-8", errors="ignore")  # drops a character that was cut
        ids = tokenizer.encode(text)
    return text


def _with_prompt(record: R, prompt: PromptText) -> R:
    if isinstance(record, Conversation):
        return Conversation((*prompt, record.messages[-1]))
    return prompt if isinstance(record, str | tuple) else replace(record, prompt=prompt)
