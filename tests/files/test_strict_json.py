"""JSON that Python's own parser accepts, but that is ambiguous or nested too deeply."""

import json
from typing import Literal

import pytest

from npllm.files.strict_json import DEEPEST, check_fields, from_fields, parse_json
from npllm.model import ModelConfig


@pytest.mark.parametrize("value", [None, True, 5, -2.5e-7, "é", [], {}, [1, {"a": [{"b": None}], "c": "a"}], 2**70])
def test_ordinary_json_is_read(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is in one object twice"),
        ('[{"x": {"a": 1, "\\u0061": 2}}]', "the key 'a' is in one object twice"),
        ("[NaN]", "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ("[1e999]", "1e999 is too large"),
        ("-" + "9" * 400 + ".0", "is too large"),
        ("9" * 5000, "^9{80} is too large for a number"),
        ("{", "Expecting"),
        ("", "Expecting"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_json(text)


def test_a_key_named_in_the_message_is_cut():
    key = "k" * 10**6
    with pytest.raises(ValueError, match="twice") as caught:
        parse_json(f'{{"{key}": 1, "{key}": 2}}')
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_has_a_limit(start, end):
    levels = DEEPEST // len(start.replace('"a":', ""))
    json.dumps(parse_json(start * levels + "1" * ("a" in start) + end * levels))
    for more in (levels + 1, 400, 10**5):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(start * more + "1" * ("a" in start) + end * more)


RIGHT = [
    (int, [0, -5, 2**64 - 1, -(2**63)]),
    (float, [0.5, -3, 2**64 - 1]),
    (bool, [True, False]),
    (str, ["", "x"]),
    (float | None, [None, 2.5, 1]),
    (Literal["a", "b"], ["a", "b"]),
    (list, [[], [1]]),
    (dict, [{}, {"a": 1}]),
]
WRONG = {
    int: [None, True, False, 32.0, 2**64, 10**4000, "1", [], {}],
    float: [None, True, False, 2**64, 10**4000, "1", [], {}, float("nan"), float("inf")],
    bool: [None, 1, 0, 1.0, "true", [], {}],
    str: [None, True, 1, 32.0, [], {}],
    float | None: [True, False, 10**4000, "1", [], float("nan")],
    Literal["a", "b"]: ["c", None, True, 1, [], ["a"]],
    list: [None, "x", {}, 1],
    dict: [None, "x", [], 1],
}


@pytest.mark.parametrize(("kind", "values"), RIGHT)
def test_a_field_of_the_declared_type_is_accepted(kind, values):
    for value in values:
        check_fields({"x": value, "other": "anything"}, {"x": kind})


@pytest.mark.parametrize(("kind", "values"), WRONG.items())
def test_a_field_of_another_type_is_refused(kind, values):
    """For Python True is the integer 1, and 10**4000 an int that no message can
    hold."""
    for value in values:
        with pytest.raises(ValueError, match="^x is ") as caught:
            check_fields({"x": value}, {"x": kind})
        assert len(str(caught.value)) < 100


@pytest.mark.parametrize("value", [[], None, "x", 3])
def test_what_has_no_fields_is_refused(value):
    for check in (lambda: check_fields(value, {"x": int}), lambda: from_fields(ModelConfig, value)):
        with pytest.raises(ValueError, match="it is not an object"):
            check()


def test_a_dataclass_is_made_from_fields_of_its_types():
    assert from_fields(ModelConfig, {"vocab_size": 7, "n_kv_head": None}) == ModelConfig(vocab_size=7)
    for fields, complaint in (
        ({"n_layer": 2}, "vocab_size is missing"),
        ({"vocab_size": 7, "n_kv_head": True}, "n_kv_head is true"),
        ({"vocab_size": 7, "nlayer": 2}, "nlayer is none of its fields"),
    ):
        with pytest.raises(ValueError, match=complaint):
            from_fields(ModelConfig, fields)
