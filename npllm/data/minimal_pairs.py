"""Minimal pairs of code: two functions that differ in one word, one right, one wrong.

    bracket          one bracket is replaced by another that opens, or closes, too
    indentation      one line is moved by four blanks
    keyword          one keyword is replaced by another
    undefined name   one use of a variable is replaced by a name that is not bound

Python's parser is the judge. A right function compiles, and all of its names are bound
in it or built in. A wrong one of the first three kinds cannot be parsed. A wrong one of
the last kind can be, but exactly one of its names is not bound.

A model without knowledge of code must be right in half of the pairs. So both functions
of a pair have the same number of tokens, and each change occurs as often as its
reverse: where n pairs have `(` in the right function and `[` in the wrong one, n others
have `[` in the right one and `(` in the wrong one. A preference that does not depend on
the rest of the function, such as one for the shorter or the more frequent word, is
therefore right in exactly half of the pairs.

Source of the idea: Warstadt et al., "BLiMP: The benchmark of linguistic minimal pairs
for English", 2020.
"""

import ast
import builtins
import io
import keyword
import symtable
import tokenize
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from npllm.data.docstrings import functions_of, parse
from npllm.errors import DataError
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import MINIMAL_PAIRS
from npllm.tokenizer import Tokenizer

PHENOMENA = ("bracket", "indentation", "keyword", "undefined name")
LINES = range(2, 16)  # of a function
MOST_CHARACTERS = 400  # of a function, which mostly has fewer than 128 tokens
BRACKETS = ("([{", ")]}")
KEYWORDS = tuple(word for word in keyword.kwlist if word not in ("False", "None", "True"))
STEP = 4  # blanks that a line is moved by
BUILT_IN = frozenset(dir(builtins))


class MinimalPair(NamedTuple):
    """right, wrong: the source of a function, with a line end. phenomenon: one of
    PHENOMENA. old, new: what differs, as it stands in the right and in the wrong
    one."""

    phenomenon: str
    right: str
    wrong: str
    old: str
    new: str


class Change(NamedTuple):
    """Puts `new` in the place of `old`, which starts at a character of a text."""

    start: int
    old: str
    new: str

    def of(self, text: str) -> str:
        """Return the changed text."""
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


def minimal_pairs(functions: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[MinimalPair]:
    """Return the pairs of some functions (see `short_functions`), by phenomenon.

    A function is in at most one pair of each phenomenon. Both functions of a pair have
    the same number of tokens, at most `longest`. The same functions and the same
    tokenizer give the same pairs. A function with a character that the tokenizer lacks
    is left out.
    """
    lengths = {text: _n_tokens(tokenizer, text) for text in functions}
    usable = [text for text in functions if 0 < lengths[text] <= longest]
    names = _common_names(usable)
    offers: dict[str, Callable[[str], list[Change]]] = {
        "bracket": _brackets,
        "indentation": _indentations,
        "keyword": _keywords,
        "undefined name": lambda text: _undefined_names(text, names),
    }

    @cache
    def fits(text: str, change: Change) -> bool:
        wrong = change.of(text)
        if _n_tokens(tokenizer, wrong) != lengths[text]:
            return False
        return parse(wrong) is None or unbound_names(wrong) == {change.new}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about code such as `(1)[2]`
        return [
            MinimalPair(phenomenon, text, change.of(text), change.old, change.new)
            for number, phenomenon in enumerate(PHENOMENA)
            for text, change in _balanced(usable, offers[phenomenon], fits, number)
        ]


def short_functions(documents: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return the functions and methods of Python modules that pairs are made of.

    Each has 2 to 15 lines, at most 400 characters, and ASCII only; it stands alone,
    without decorators; it compiles, and it is there once. Documents that are no Python
    give none. known: texts of which none may hold the function, such as those that a
    model was trained on.
    """
    found = dict.fromkeys(
        text
        for document in documents
        for function in functions_of(document.replace("\r\n", "\n"))
        if _is_short(text := function.text) and _compiles(text)
    )
    return _without_known(list(found), known)


def unbound_names(source: str) -> set[str]:
    """Return the names that code reads but that are neither bound in it nor built in.

    Raises SyntaxError for code that cannot be parsed.
    """
    module = symtable.symtable(source, "<pair>", "exec")
    bound = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = {
        symbol.get_name()
        for table in _tables(module)
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table is module)
    }
    return used - bound - BUILT_IN


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _is_short(text: str) -> bool:
    return text.count("\n") in LINES and len(text) <= MOST_CHARACTERS and text.isascii()


def _compiles(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "<pair>", "exec")
        except (SyntaxError, ValueError):  # such as `return` outside a function
            return False
        return True


def _without_known(functions: list[str], known: Iterable[str]) -> list[str]:
    """Return the functions that no known text holds, whatever their indentation is."""
    waiting = defaultdict(list)  # stripped lines of a function, by the first of them
    for text in functions:
        lines = _stripped(text)
        waiting[lines[0]].append(lines)
    seen = set()
    for document in known:
        lines = _stripped(document)
        for place, line in enumerate(lines):
            for wanted in waiting.get(line, ()):
                if lines[place : place + len(wanted)] == wanted:
                    seen.add("\n".join(wanted))
    return [text for text in functions if "\n".join(_stripped(text)) not in seen]


def _stripped(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _n_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Return how many tokens a text has; 0 when the tokenizer lacks a character."""
    try:
        return len(tokenizer.encode(text))
    except DataError:
        return 0


def _balanced(functions, offer, fits, number: int) -> Iterator[tuple[str, Change]]:
    """Yield functions, each with a change; every change occurs as often as its reverse.

    The functions come in a random order, and so do the changes of each. A change waits
    until one of another function is its reverse; then both functions are taken.
    """
    waiting: defaultdict[tuple[str, str], deque[tuple[str, Change]]] = defaultdict(deque)
    taken = set()

    def is_free(text: str, change: Change) -> bool:
        return text not in taken and fits(text, change)

    for place in map(int, random_permutation(len(functions), seed=0, stream=MINIMAL_PAIRS[number])):
        text = functions[place]
        changes = offer(text)
        order = random_permutation(len(changes), seed=0, step=1 + place, stream=MINIMAL_PAIRS[number])
        for change in (changes[i] for i in order):
            partners = waiting[change.new, change.old]
            while partners and not is_free(*partners[0]):
                partners.popleft()
            if partners and is_free(text, change):
                taken |= {text, partners[0][0]}
                yield from (partners[0], (text, change))
                break
        else:
            for change in changes:
                waiting[change.old, change.new].append((text, change))


def _brackets(text: str) -> list[Change]:
    """The brackets, in the place of which each other one of the same side is put."""
    others = {each: [other for other in side if other != each] for side in BRACKETS for each in side}
    places = [start for kind, start, word in _words(text) if kind == tokenize.OP and word in others]
    return [Change(start, text[start], new) for start in places for new in others[text[start]]]


def _keywords(text: str) -> list[Change]:
    """The keywords, but for the first, in the place of which each other one is put."""
    found = [(start, word) for kind, start, word in _words(text) if kind == tokenize.NAME and word in KEYWORDS]
    return [Change(start, old, new) for start, old in found if start > 0 for new in KEYWORDS if new != old]


def _indentations(text: str) -> list[Change]:
    """The lines that start a statement, but for the first, moved to each side."""
    changes, starts = [], _line_starts(text)
    for row in sorted({row for row in map(_row_of_statement, ast.walk(ast.parse(text))) if row > 1}):
        line = text[starts[row - 1] :].partition("\n")[0]
        old = " " * (len(line) - len(line.lstrip(" ")))
        moved = [" " * (len(old) + step) for step in (-STEP, STEP) if len(old) + step > 0]
        changes += [Change(starts[row - 1], old, new) for new in moved]
    return changes


def _row_of_statement(node: ast.AST) -> int:
    return node.lineno if isinstance(node, ast.stmt) else 0


def _undefined_names(text: str, names: Sequence[str]) -> list[Change]:
    """The uses of variables that the function binds, each with names that it lacks."""
    if unbound_names(text):
        return []
    starts, tree = _line_starts(text), ast.parse(text)
    own, words = _bound_in(text), {word for _, _, word in _words(text)}
    uses = [
        (starts[node.lineno - 1] + node.col_offset, node.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in own
    ]
    others = [name for name in names if name not in words and name not in BUILT_IN]
    return [Change(start, old, new) for start, old in sorted(uses) for new in others]


def _bound_in(text: str) -> set[str]:
    """The parameters and variables of a function, and of those inside it."""
    module = symtable.symtable(text, "<pair>", "exec")
    inner = chain.from_iterable(table.get_symbols() for table in _tables(module) if table is not module)
    return {symbol.get_name() for symbol in inner if symbol.is_local()}


def _common_names(functions: Sequence[str]) -> list[str]:
    """Return the variables that occur in at least two functions, by name."""
    counts: defaultdict[str, int] = defaultdict(int)
    for text in functions:
        for name in _bound_in(text):
            counts[name] += 1
    return sorted(name for name, count in counts.items() if count > 1)


def _words(text: str) -> Iterator[tuple[int, int, str]]:
    """The kind, the place and the text of each word of a function."""
    starts = _line_starts(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        yield token.type, starts[token.start[0] - 1] + token.start[1] if token.string else len(text), token.string


def _line_starts(text: str) -> list[int]:
    """The place of the first character of each line."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts
