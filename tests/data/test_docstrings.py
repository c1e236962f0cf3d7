"""Demonstrations from source code: their parts, and which functions are left out."""

import ast

import pytest

from npllm.data import docstrings
from npllm.data.corpora import Corpus, load_corpus
from npllm.data.docstrings import stdlib_docstrings, stdlib_functions
from npllm.data.documents import Document, stored
from npllm.data.records import Demonstration


@pytest.fixture
def library(monkeypatch):
    """Replaces the standard library by modules with the given source texts."""

    def use(*sources: str) -> None:
        documents = [Document(f"{place}.py", stored(source)) for place, source in enumerate(sources)]
        monkeypatch.setattr(
            docstrings, "load_corpus", lambda source: Corpus(documents[1:], documents[:1], 0, 0, "", [])
        )

    return use


CLASS = '''
class A:
    @property
    @cache(":")
    def size(self,
             other: dict[str, int] = {"a": lambda: 1},  # not: the end
             ) -> "int":  # the size
        # before all
        """Return   the size
        of it.

        More of it.
        """

        if other:  # why
            return 1
        return 2
'''
SIGNATURE = """def size(self,
         other: dict[str, int] = {"a": lambda: 1},  # not: the end
         ) -> "int":
"""


def test_the_parts_of_a_method(library):
    library(CLASS)
    assert stdlib_docstrings() == [Demonstration(SIGNATURE, "Return the size of it.")]
    assert stdlib_functions() == [Demonstration(SIGNATURE, "    if other:  # why\n        return 1\n    return 2\n")]


def test_lines_that_end_as_on_windows_give_the_same(library):
    library(CLASS.replace("\n", "\r\n"))
    assert stdlib_docstrings() == [Demonstration(SIGNATURE, "Return the size of it.")]
    assert stdlib_functions()[0].response.startswith("    if other:  # why\n")


def test_nested_and_asynchronous_functions_in_order_and_each_once(library):
    outer = "async def f():\n    def g():\n        return 1\n    return g\n"
    last = "def last():\n    return 2\n"
    library("def z(): pass\n" + outer + outer + last, "def later():\n    return 3\n" + outer)
    assert stdlib_functions() == [
        Demonstration("async def f():\n", "    def g():\n        return 1\n    return g\n"),
        Demonstration("def g():\n", "    return 1\n"),
        Demonstration("def last():\n", "    return 2\n"),
        Demonstration("def later():\n", "    return 3\n"),
    ]


@pytest.mark.parametrize(("words", "is_taken"), [(2, False), (3, True), (40, True), (41, False)])
def test_docstrings_of_a_sane_length(library, words, is_taken):
    library(f'def f():\n    """{"word " * words}"""\n')
    assert stdlib_docstrings() == [Demonstration("def f():\n", " ".join(["word"] * words))] * is_taken


def test_a_docstring_that_cannot_be_printed_is_left_out(library):
    library("def f():\n    'it rings the \\a bell'\n")
    assert stdlib_docstrings() == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    'only a docstring here'\n",
        "def f():\n    ''\n    # and an empty one\n",
        "def f(): return 1\n",
        "def f():\n" + "    x = 1\n" * 9,
        "def f():\n    x = '" + "x" * 300 + "'\n",
        "def f():\n  return 1\n",
        "def f():\n        return 1\n",
        "def f():\n    'a docstring'; x = [\n    1]\n",
        "class A:\n    def f(self):\n        return '''\nx'''\n",
        "def f(:\n    return 1\n",
    ],
    ids=[
        "docstring",
        "empty docstring",
        "one line",
        "9 lines",
        "long",
        "2 spaces",
        "8 spaces",
        "more beside the docstring",
        "string to the left",
        "not Python",
    ],
)
def test_functions_that_are_left_out(library, source):
    library("def kept():\n    return 1\n", source)
    assert stdlib_functions() == [Demonstration("def kept():\n", "    return 1\n")]


def test_the_standard_library_itself(monkeypatch):
    """In a tenth of it, each function is whole, and there are enough to learn from."""
    corpus = load_corpus("stdlib", val_fraction=0.1)
    tenth = Corpus([], corpus.val, 0, 0, "", [])
    monkeypatch.setattr(docstrings, "load_corpus", lambda source: tenth)
    summaries, functions = stdlib_docstrings(), stdlib_functions()
    assert len(summaries) > 100
    assert len(functions) > 200
    assert len(set(summaries)) == len(summaries)
    assert len(set(functions)) == len(functions)
    for demonstration in functions:
        (function,) = ast.parse(demonstration.prompt + demonstration.response).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) is None
        assert 1 <= demonstration.response.count("\n") <= 8
        assert len(demonstration.response) <= 300
    for demonstration in summaries:
        (function,) = ast.parse(demonstration.prompt + "    pass\n").body
        assert demonstration.prompt.endswith(":\n")
        assert 3 <= len(demonstration.response.split()) <= 40
        assert "\n" not in demonstration.response
