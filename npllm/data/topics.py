"""A classification task from the standard library: which package is a snippet from?"""

import re
from collections import defaultdict
from collections.abc import Iterator

from npllm.data.corpora import load_corpus
from npllm.data.records import Labelled

SNIPPET_LINES = 8
LEAST_LINES = 5  # lines; the shortest snippet, at the end of a file


def stdlib_topics(n_classes: int = 8) -> list[Labelled]:
    """Return snippets of 8 lines that are not blank, labelled with their package.

    The classes are the n_classes package folders (asyncio, email, ...) with the most
    text. Lines that hold the name of one of them as a word are left out, because they
    would give the answer away. The group of a snippet is its file, because a split must
    not put a file on both sides. Each snippet occurs once; the order is that of the
    files' names. With 8 classes there are roughly 800 to 2,000 snippets per class, most
    classes from a dozen files or more; without Tk, or in newer Pythons, roughly 500 or
    more.
    """
    files: defaultdict[str, dict[str, str]] = defaultdict(dict)  # package -> name of the file -> text
    corpus = load_corpus("stdlib")
    for document in sorted([*corpus.train, *corpus.val], key=lambda document: document.name):
        package, is_inside, _ = document.name.partition("/")
        if is_inside:
            files[package][document.name] = document.text
    packages = sorted(files, key=lambda package: -sum(map(len, files[package].values())))[:n_classes]
    giveaway = re.compile(rf"\b({'|'.join(map(re.escape, packages))})\b", re.IGNORECASE)
    snippets: dict[str, Labelled] = {}
    for package in sorted(packages):
        for name, text in files[package].items():
            for snippet in _snippets(text, giveaway):
                snippets.setdefault(snippet, Labelled(snippet, package, name))
    return list(snippets.values())


def _snippets(text: str, giveaway: re.Pattern) -> Iterator[str]:
    lines = [line.rstrip() for line in text.split("\n") if line.strip() and not giveaway.search(line)]
    for begin in range(0, len(lines) - LEAST_LINES + 1, SNIPPET_LINES):
        yield "\n".join(lines[begin : begin + SNIPPET_LINES])
