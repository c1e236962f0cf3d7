"""*Backprop through a Transformer*: the reference package as one HTML page.

A chapter is a file. Its derivation is the file's docstring, its code the file itself,
its numbers are computed while the page is made (`worked_examples.py`,
`worked_steps.py`), and its exercises are those of `exercises.py`. The order is that of
the tables in `npllm/reference/README.md`.
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import npllm
from npllm.pages.exercises import EXERCISES
from npllm.pages.markup import to_html
from npllm.pages.page import check_page, render, write_page
from npllm.pages.pictures import heat_map, line_chart
from npllm.pages.source import highlighted, highlighted_text
from npllm.pages.worked_examples import Example, Row
from npllm.pages.worked_steps import EXAMPLES

PACKAGE = Path(npllm.__file__).parent
READING_ORDER = PACKAGE / "reference" / "README.md"
NO_CHAPTER = {"reference/lesson.py"}  # the numbers of the last chapter come from it
LAST = ["reference/block.py", "reference/transformer.py"]  # the whole, made of its parts
MOST_SHOWN = 24  # elements of an array whose numbers are shown; a larger one is a picture


class Section(NamedTuple):
    """A function whose docstring has a derivation of its own."""

    name: str
    text: Any  # HTML


class Shown(NamedTuple):
    """A row of a table of numbers, as HTML or text."""

    name: str
    shape: str
    value: Any
    gradient: Any
    error: str


class Question(NamedTuple):
    question: Any
    before: Any
    after: Any
    answer: Any
    test: str


class Chapter(NamedTuple):
    """What the template shows of a file. anchor: the target of links."""

    anchor: str
    title: str
    derivation: Any
    sections: list[Section]
    source: Any
    example: Any
    numbers: list[Shown]
    exercises: list[Question]


def write_book(path: Path) -> None:
    """Write the book. Raises ConfigError without the packages, ResourceError."""
    check_page(path)
    write_page(path, book_page())


def book_page() -> str:
    """Return the HTML of the book."""
    chapters = [chapter(file) for file in chapter_files()]
    contents = [("notation", "Notation"), *((each.anchor, each.title) for each in chapters)]
    return render("book.html", contents=contents, notation=to_html(notation()), chapters=chapters)


def chapter_files() -> list[str]:
    """The files of the chapters in their order, such as "reference/linear.py"."""
    rows = [line for line in READING_ORDER.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    links = re.findall(r"\]\(([\w./]+\.py)\)", "\n".join(rows))
    files = [(READING_ORDER.parent / link).resolve().relative_to(PACKAGE.resolve()).as_posix() for link in links]
    return [file for file in files if file not in {*NO_CHAPTER, *LAST}] + LAST


def notation() -> str:
    """The section of the README that describes how formulas are written."""
    text = READING_ORDER.read_text(encoding="utf-8")
    return re.search(r"^## Notation\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]


def chapter(file: str) -> Chapter:
    """Return the chapter of a file of the package."""
    module = import_module("npllm." + file.removesuffix(".py").replace("/", "."))
    docstring = inspect.getdoc(module)
    title = re.split(r"[:.;]", docstring)[0]
    example = EXAMPLES[file]()
    return Chapter(
        anchor=Path(file).stem.replace("_", "-"),
        title=title,
        derivation=to_html(docstring.removeprefix(f"{title}.")),  # a sentence that is the title
        sections=_sections(module),
        source=highlighted(module),
        example=to_html(example.text),
        numbers=_numbers(example),
        exercises=_questions(file),
    )


def _sections(module: ModuleType) -> list[Section]:
    """The functions and classes whose docstrings hold formulas of their own."""
    tree = ast.parse(inspect.getsource(module))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    docstrings = {name: inspect.getdoc(getattr(module, name)) or "" for name in names}
    return [Section(name, to_html(text)) for name, text in docstrings.items() if "$$" in text]


def _numbers(example: Example) -> list[Shown]:
    return [
        Shown(
            row.name,
            " x ".join(map(str, np.shape(row.value))) if isinstance(row.value, np.ndarray) else "",
            _value(row, row.value),
            "" if row.gradient is None else _value(row, row.gradient, "gradient of "),
            "" if row.error is None else f"{row.error:.1e}",
        )
        for row in example.rows
    ]


def _value(row: Row, value: Any, what: str = "") -> Any:
    """Numbers as text; a large array as a picture, and a long curve as a chart."""
    if isinstance(value, str):
        return value
    if np.size(value) <= MOST_SHOWN:
        return numbers(value)
    if np.ndim(value) == 1 and row.error is None:
        return line_chart({row.name: (np.arange(1, len(value) + 1), value)}, row.name, x_title="update")
    return heat_map(value, what + row.name)


def numbers(value: Any) -> str:
    """An array as text, rounded to four digits after the point."""
    rounded = np.round(np.asarray(value), 4) + 0  # a small negative number is 0, not -0
    return np.array2string(rounded, precision=4, suppress_small=True, separator=" ", max_line_width=60)


def _questions(file: str) -> list[Question]:
    return [
        Question(
            to_html(each.question),
            highlighted_text(each.before),
            highlighted_text(each.after),
            to_html(each.answer),
            each.test,
        )
        for each in EXERCISES.get(file, ())
    ]
