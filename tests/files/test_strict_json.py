"""JSON that Python's own parser accepts, but that is ambiguous or nested too deeply."""

import json

import pytest

from npllm.files.strict_json import DEEPEST, parse_json


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
        ("9" * 5000, "4300"),
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
