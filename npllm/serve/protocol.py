"""Requests of OpenAI's interface, checked, as what this package generates from.

A field that is unknown, or known and not supported, is refused by its name; it is never
ignored. A field that is null counts as absent.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npllm.data.record_file import Unusable
from npllm.data.records import PromptText
from npllm.data.records import prompt as prompt_of
from npllm.errors import ConfigError, DataError
from npllm.files.strict_json import check_fields
from npllm.generation.sampling import Sampling
from npllm.generation.stop_texts import check_stop
from npllm.serve.errors import ApiError
from npllm.serve.weights import Served
from npllm.serve.writing import Order

MOST_ALTERNATIVES = 20
MOST_STOPS, LONGEST_STOP = 16, 200  # texts, characters
COMPLETION_TOKENS = 16  # of a completion whose request does not say how many

# Field -> type, of both kinds of requests.
COMMON = {
    "model": str,
    "n": int,
    "seed": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "stop": str | list,
    "stream": bool,
    "stream_options": dict,
    "max_tokens": int,
    "user": str,
}
COMPLETION = COMMON | {"prompt": str | list, "logprobs": int, "echo": bool}
CHAT = COMMON | {"messages": list, "logprobs": bool, "top_logprobs": int, "max_completion_tokens": int}
# Fields that are supported only with the value that changes nothing.
NEUTRAL = {
    "best_of": (1,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}


@dataclass(frozen=True)
class Asked:
    """A request that can be answered.

    orders: one for each text, those of the first prompt first. echoed: the text of each
    prompt, which precedes its answers; "" = it is not repeated. chat: whether it is an
    answer in a conversation. include_usage: in a last event of a stream.
    """

    served: Served
    orders: list[Order]
    echoed: list[str]
    prompt_tokens: int
    chat: bool
    stream: bool
    include_usage: bool


def completion(body: Any, served: Served, name: str, most_texts: int) -> Asked:
    """Return what a body of /v1/completions asks of a model. Raises ApiError.

    name: of the model. most_texts: the most that one request may ask for.
    """
    fields = checked(body, COMPLETION, name)
    if "prompt" not in fields:
        raise ApiError(400, "prompt is missing; give a text, token ids, or a list of them.", param="prompt")
    prompts = _prompts(fields["prompt"], served)
    echo, scores = fields.get("echo", False), fields.get("logprobs")
    _check_range("logprobs", scores or 0, 0, MOST_ALTERNATIVES)
    texts = [served.tokenizer.decode(ids) if text is None else text for text, ids in prompts] if echo else []
    orders = _orders(
        fields,
        served,
        [ids for _, ids in prompts],
        most_texts,
        max_tokens=fields.get("max_tokens"),
        usual_tokens=COMPLETION_TOKENS,
        alternatives=scores,
        scores_prompt=echo and scores is not None,
    )
    return _asked(fields, served, prompts, orders, texts or [""] * len(prompts), chat=False)


def chat(body: Any, served: Served, name: str, most_texts: int) -> Asked:
    """Return what a body of /v1/chat/completions asks of a model. Raises ApiError.

    name: of the model. most_texts: the most that one request may ask for.
    """
    fields = checked(body, CHAT, name)
    if not served.asked.is_chat:
        raise ApiError(
            400,
            f"The model {name} has not learnt the form of conversations; use /v1/completions, or serve a run of npllm "
            "sft on messages.",
            code="model_does_not_chat",
        )
    if "messages" not in fields:
        raise ApiError(400, "messages is missing; give a list of role and content.", param="messages")
    if len({"max_tokens", "max_completion_tokens"} & fields.keys()) == 2:
        raise ApiError(400, "max_tokens and max_completion_tokens are both given; leave out one.", param="max_tokens")
    messages = _messages(fields["messages"])
    alternatives = fields.get("top_logprobs", 0)
    _check_range("top_logprobs", alternatives, 0, MOST_ALTERNATIVES)
    if alternatives and not fields.get("logprobs"):
        raise ApiError(400, "top_logprobs needs logprobs; set logprobs to true.", param="top_logprobs")
    ids = _encoded("messages", lambda: served.asked.encode(messages))
    orders = _orders(
        fields,
        served,
        [ids],
        most_texts,
        max_tokens=fields.get("max_tokens", fields.get("max_completion_tokens")),
        usual_tokens=served.block_size,
        alternatives=alternatives if fields.get("logprobs") else None,
    )
    return _asked(fields, served, [("", ids)], orders, [""], chat=True)


def checked(body: Any, types: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of a body that are not null. Raises ApiError for one that is
    unknown, not supported or of another type, and for another model than `name`."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object; write one with the fields of the request.")
    fields = {field: value for field, value in body.items() if value is not None}
    for field in list(fields):
        if field in types:
            continue
        if field not in NEUTRAL:
            raise ApiError(400, f"The field {field:.80} is not supported; leave it out.", param=field[:80])
        if fields.pop(field) not in NEUTRAL[field]:
            raise ApiError(400, f"{field} is not supported; leave it out.", param=field, code="unsupported_parameter")
    for field in fields:
        try:
            check_fields(fields, {field: types[field]})
        except ValueError as error:
            raise ApiError(400, f"{error}, which has another type; see the README of serve.", param=field) from None
    if fields.get("model", name) != name:
        what = f"The model {fields['model']:.80} does not exist here; ask for {name}."
        raise ApiError(404, what, param="model", code="model_not_found")
    return fields


def _prompts(given: str | list, served: Served) -> list[tuple[str | None, list[int]]]:
    """Return the text of each prompt (None = it came as token ids) and its ids."""
    several = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not several:
        raise ApiError(400, "prompt is an empty list; give at least one text.", param="prompt")
    found: list[tuple[str | None, list[int]]] = []
    for prompt in several:
        if isinstance(prompt, str):
            found.append((prompt, _encoded("prompt", lambda text=prompt: served.asked.encode_text(text))))
        elif isinstance(prompt, list) and _are_ids(prompt):
            found.append((None, _checked_ids(prompt, served.tokenizer.vocab_size)))
        else:
            raise ApiError(400, "prompt has another type; give a text, token ids, or a list of them.", param="prompt")
    return found


def _are_ids(value: list) -> bool:
    return bool(value) and all(type(each) is int for each in value)


def _checked_ids(ids: list[int], vocab_size: int) -> list[int]:
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocab_size:
            raise ApiError(
                400, f"There is no token {str(token)[:20]}; give ids from 0 to {vocab_size - 1}.", param="prompt"
            )
    return ids


def _messages(entries: list) -> PromptText:
    plain = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ApiError(400, "messages has another form; give objects with role and content.", param="messages")
        if unknown := sorted(key for key, value in entry.items() if key not in ("role", "content") and value):
            what = f"The field {unknown[0]:.80} of a message is not supported; give role and content only."
            raise ApiError(400, what, param="messages", code="unsupported_parameter")
        content = entry.get("content")
        plain.append(entry | {"content": _text_of(content) if isinstance(content, list) else content})
    try:
        return prompt_of({"prompt": plain})
    except Unusable as error:
        raise ApiError(400, str(error), param="messages") from None


def _text_of(parts: list) -> str:
    """Return the text of a content in parts, which must all be texts."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            what = f"A part of a content is {kind!r:.80}, which is not supported; give text only."
            raise ApiError(400, what, param="messages", code="unsupported_parameter")
    return "".join(part["text"] for part in parts)


def _encoded(param: str, encode) -> list[int]:
    try:
        return encode()
    except (ConfigError, DataError) as error:
        raise ApiError(400, f"{error}", param=param) from None


def _orders(
    fields: dict,
    served: Served,
    prompts: list[list[int]],
    most_texts: int,
    *,
    max_tokens: int | None,
    usual_tokens: int,
    alternatives: int | None,
    scores_prompt: bool = False,
) -> list[Order]:
    n, seed = fields.get("n", 1), fields.get("seed")
    _check_range("n", n, 1, most_texts)
    if n * len(prompts) > most_texts:
        what = f"{n * len(prompts)} texts are asked for; this server writes at most {most_texts} in one request."
        raise ApiError(400, what, param="n")
    seed = secrets.randbits(63) if seed is None else seed
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    settings = {name: fields[name] for name in names if name in fields}
    try:
        samplings = [Sampling(**settings, seed=seed, sample=sample) for sample in range(n)]
    except ConfigError as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from None
    stop, param = _stop(fields.get("stop", [])), "messages" if "messages" in fields else "prompt"
    rooms = [_room(len(ids), max_tokens, usual_tokens, served.block_size, param) for ids in prompts]
    return [
        Order(ids, room, each, stop, alternatives, scores_prompt)
        for ids, room in zip(prompts, rooms, strict=True)
        for each in samplings
    ]


def _stop(given: str | list) -> tuple[str, ...]:
    stop = (given,) if isinstance(given, str) else tuple(given)
    if len(stop) > MOST_STOPS or not all(isinstance(text, str) and len(text) <= LONGEST_STOP for text in stop):
        what = f"stop has another form; give at most {MOST_STOPS} texts of {LONGEST_STOP} characters."
        raise ApiError(400, what, param="stop")
    try:
        check_stop(stop)
    except ConfigError as error:
        raise ApiError(400, str(error), param="stop") from None
    return stop


def _room(n_prompt: int, max_tokens: int | None, usual: int, block_size: int, param: str) -> int:
    """Return how many tokens to write. The last one is not read by the model any more,
    so a prompt of block_size tokens leaves room for one. param: the prompt's field."""
    room = block_size + 1 - n_prompt
    if n_prompt > block_size or (max_tokens or 0) > room:
        asked = f" and {max_tokens} tokens of an answer are asked for" if max_tokens else ""
        raise ApiError(
            400,
            f"The prompt has {n_prompt} tokens{asked}, but the model sees at most {block_size}; shorten the prompt or "
            "lower max_tokens.",
            param="max_tokens" if n_prompt <= block_size else param,
            code="context_length_exceeded",
        )
    if max_tokens is not None and max_tokens < 0:
        raise ApiError(400, f"max_tokens is {max_tokens}; set it to at least 0.", param="max_tokens")
    return min(usual, room) if max_tokens is None else max_tokens


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ApiError(400, f"{name} is {value}; set it from {least} to {most}.", param=name)


def _asked(fields: dict, served: Served, prompts, orders: list[Order], echoed: list[str], *, chat: bool) -> Asked:
    options = fields.get("stream_options", {})
    if set(options) - {"include_usage"} or not isinstance(options.get("include_usage", False), bool):
        raise ApiError(400, "stream_options has only include_usage, true or false.", param="stream_options")
    if options and not fields.get("stream"):
        raise ApiError(400, "stream_options needs stream; set stream to true.", param="stream_options")
    n = len(orders) // len(prompts)
    return Asked(
        served=served,
        orders=orders,
        echoed=[text for text in echoed for _ in range(n)],
        prompt_tokens=sum(len(ids) for _, ids in prompts),
        chat=chat,
        stream=fields.get("stream", False),
        include_usage=options.get("include_usage", False),
    )
