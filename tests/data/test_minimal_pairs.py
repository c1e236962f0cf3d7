"""Minimal pairs of code: what is wrong in each, balance, and where they come from."""

import ast
import contextlib
import inspect
import json.decoder
import shlex
import textwrap
from collections import Counter

import pytest

from npllm.data.minimal_pairs import KEYWORDS, PHENOMENA, minimal_pairs, short_functions, unbound_names
from npllm.tokenizer import train_bpe, train_char

SOURCES = [inspect.getsource(module) for module in (contextlib, json.decoder, shlex, textwrap)]
LONGEST = 110  # tokens


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(SOURCES, vocab_size=512)


@pytest.fixture(scope="module")
def functions():
    return short_functions(SOURCES)


@pytest.fixture(scope="module")
def pairs(functions, tokenizer):
    return minimal_pairs(functions, tokenizer, LONGEST)


def can_be_parsed(text):
    try:
        return bool(ast.parse(text))
    except SyntaxError:
        return False


def test_the_right_one_compiles_and_the_wrong_one_is_wrong(pairs):
    assert {pair.phenomenon for pair in pairs} == set(PHENOMENA)
    for pair in pairs:
        compile(pair.right, "right", "exec")
        if pair.phenomenon == "undefined name":
            assert (unbound_names(pair.right), unbound_names(pair.wrong)) == (set(), {pair.new})
        else:
            assert not can_be_parsed(pair.wrong), pair


def test_the_two_differ_in_one_place_and_have_equally_many_tokens(pairs, tokenizer):
    for pair in pairs:
        places = [n for n in range(len(pair.right)) if pair.right.startswith(pair.old, n)]
        assert pair.wrong in [pair.right[:n] + pair.new + pair.right[n + len(pair.old) :] for n in places]
        lengths = {len(tokenizer.encode(text)) for text in (pair.right, pair.wrong)}
        assert len(lengths) == 1
        assert max(lengths) <= LONGEST


def test_what_is_changed(pairs):
    for pair in pairs:
        if pair.phenomenon == "bracket":
            assert {pair.old, pair.new} <= set("([{") or {pair.old, pair.new} <= set(")]}")
        elif pair.phenomenon == "indentation":
            assert (pair.old + pair.new).isspace()
            assert abs(len(pair.old) - len(pair.new)) == 4
        elif pair.phenomenon == "keyword":
            assert {pair.old, pair.new} <= set(KEYWORDS)


def test_each_change_occurs_as_often_as_its_reverse(pairs):
    for phenomenon in PHENOMENA:
        counts = Counter((pair.old, pair.new) for pair in pairs if pair.phenomenon == phenomenon)
        assert counts == {(new, old): n for (old, new), n in counts.items()}


def test_a_function_is_in_one_pair_of_each_phenomenon(pairs):
    assert len({(pair.phenomenon, pair.right) for pair in pairs}) == len(pairs)


def test_the_same_functions_give_the_same_pairs(functions, pairs, tokenizer):
    assert minimal_pairs(functions, tokenizer, LONGEST) == pairs


def test_every_function_stands_in_a_document(functions):
    lines = {line.strip() for source in SOURCES for line in source.splitlines()}
    assert len(functions) > 30
    assert all(line.strip() in lines for text in functions for line in text.splitlines())


def test_a_function_that_a_known_text_holds_is_left_out(functions):
    known = "class A:\n" + textwrap.indent(functions[3], "        ") + "\n"
    assert short_functions(SOURCES, [known, "x = 1\n"]) == [*functions[:3], *functions[4:]]
    another = known.replace("return", "return not")
    assert short_functions(SOURCES, [another]) == functions


def test_what_is_no_function_to_use_is_left_out():
    sound = "def f(a):\n    return a\n"
    bad = ["def f(:\n", "def f(): return 1\n", "def f(a):\n    return 'ä'\n", "def f():\n    a\n    nonlocal b\n"]
    long = "def f(a):\n" + "    a += 1\n" * 15
    assert short_functions([*bad, long, f"@cache\n{sound}", sound.replace("\n", "\r\n")]) == [sound]


def test_a_function_with_a_character_that_the_tokenizer_lacks_is_left_out(functions):
    letters = train_char(["".join(text for text in functions if "q" not in text)])
    pairs = minimal_pairs(functions, letters, longest=400)
    assert pairs
    assert not any("q" in pair.right + pair.wrong for pair in pairs)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a, *b, c=1, **d):\n    return a, b, c, d, len, f\n", set()),
        ("def f(a):\n    return b\n", {"b"}),
        ("def f(a: T = v) -> U:\n    return a.b\n", {"T", "U", "v"}),
        ("def f():\n    import os.path as p, re\n    return p, re, os\n", {"os"}),
        ("def f():\n    return [x for x in y for y in z]\n", {"y", "z"}),
        ("def f():\n    def g():\n        return h\n    h = 1\n    return g\n", set()),
        ("def f():\n    global a\n    return a\n", {"a"}),
        ("def f():\n    try:\n        1\n    except E as e:\n        return e\n", {"E"}),
    ],
)
def test_unbound_names(source, names):
    assert unbound_names(source) == names
