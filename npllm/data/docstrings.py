"""Demonstrations from the standard library: signature and description, or body.

Every Python installation has these functions, so the later stages can be tried without
any file. The prompt is the signature as it stands in the source, without decorators and
indented as if the function stood alone. The response is the beginning of the docstring,
or the body.
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from textwrap import dedent
from typing import NamedTuple

from npllm.data.corpora import load_corpus
from npllm.data.records import Demonstration

DOCSTRING_WORDS = range(3, 41)
BODY_LINES = range(1, 9)
MOST_BODY_CHARACTERS = 300
INDENT = "    "

Definition = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    """The source of a function in parts.

    signature: the `def` line or lines. docstring: "" where there is none. body: without
    the docstring. text: the whole source.
    """

    signature: str
    docstring: str
    body: str
    text: str


def stdlib_docstrings() -> list[Demonstration]:
    """Return pairs of a signature and the first paragraph of the docstring.

    The paragraph has 3 to 40 words and is put on one line. There are several thousand
    distinct pairs, in the order of the files' names and of the functions in each.
    """
    summaries = ((function.signature, _first_paragraph(function.docstring)) for function in _stdlib_functions())
    return _distinct(
        (signature, summary)
        for signature, summary in summaries
        if len(summary.split()) in DOCSTRING_WORDS and summary.isprintable()
    )


def stdlib_functions() -> list[Demonstration]:
    """Return pairs of a signature and the body without docstring.

    The body has 1 to 8 lines and at most 300 characters. Prompt and response end in a
    line feed, and joined they are valid Python. There are several thousand distinct
    pairs, in the order of the files' names and of the functions in each.
    """
    return _distinct(
        (function.signature, function.body)
        for function in _stdlib_functions()
        if _is_short(function.body) and parse(function.signature + function.body)
    )


def _distinct(pairs: Iterator[tuple[str, str]]) -> list[Demonstration]:
    return [Demonstration(prompt, response) for prompt, response in dict.fromkeys(pairs)]


def _first_paragraph(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


def _is_short(body: str) -> bool:
    is_indented = body.startswith(INDENT) and not body[len(INDENT)].isspace()
    return is_indented and body.count("\n") in BODY_LINES and len(body) <= MOST_BODY_CHARACTERS


def _stdlib_functions() -> Iterator[Function]:
    corpus = load_corpus("stdlib")
    for document in sorted([*corpus.train, *corpus.val], key=lambda document: document.name):
        yield from functions_of(document.text.replace("\r\n", "\n"))


def functions_of(source: str) -> Iterator[Function]:
    """Every function and method of a module, in order.

    There are none when this Python cannot parse the module.
    """
    module = parse(source)
    lines = source.split("\n")
    definitions = _definitions(module) if module else ()
    for node in sorted(definitions, key=lambda node: node.lineno):
        text = dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) + "\n"
        if text.startswith(("def ", "async def ")):  # else a string in it is indented less than the function
            yield _parts(node, text)


def _definitions(parent: ast.AST) -> Iterator[Definition]:
    """Every function below a node. Only lists of statements are searched: `ast.walk`
    would also visit the expressions, which are many more."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(parent, field, ()):
            if isinstance(node, Definition):
                yield node
            yield from _definitions(node)


def _parts(node: Definition, text: str) -> Function:
    """text: the dedented source of the node.

    A function written on one line has an empty body.
    """
    row, column = _end_of_signature(text)
    lines = text.split("\n")
    signature = "\n".join([*lines[: row - 1], lines[row - 1][:column]]) + "\n"
    docstring = ast.get_docstring(node)
    first = row if docstring is None else node.body[0].end_lineno - node.lineno + 1
    return Function(signature, docstring or "", "\n".join(lines[first:]).lstrip("\n"), text)


def _end_of_signature(text: str) -> tuple[int, int]:
    """Return (row, column) after the colon that ends the signature.

    It is the first colon outside all brackets.

    Rows count from 1.
    """
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                return token.end
    raise AssertionError("a function that Python parsed has a colon")


def parse(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those about escapes like "\d" in the library's source
        try:
            return ast.parse(source)
        except SyntaxError:
            return None
