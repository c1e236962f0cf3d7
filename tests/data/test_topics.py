"""The snippets of the built-in classification task. No text names its own class."""

import re
from collections import Counter, defaultdict

import pytest

from npllm.data import topics
from npllm.data.corpora import Corpus
from npllm.data.documents import Document, stored
from npllm.data.topics import stdlib_topics


@pytest.fixture(scope="module")
def snippets():
    return stdlib_topics()


def numbered(name: str, first: int, last: int) -> list[str]:
    return [f"{name} line {number}" for number in range(first, last)]


def test_exactly_these_snippets(monkeypatch):
    lines = [*numbered("a", 0, 4), "", "import Pack.x", *numbered("a", 4, 21)]
    documents = [
        Document("pack/b.py", stored("\n".join(lines))),
        Document("pack/a.py", stored("\n".join(numbered("packs", 0, 8) + ["  \t", "  other "]))),
        Document("other/c.py", stored("\n".join(numbered("repack", 0, 12)))),
        Document("small/d.py", stored("\n".join(numbered("d", 0, 8)))),
        Document("alone.py", stored("\n".join(numbered("e", 0, 800)))),
    ]
    monkeypatch.setattr(topics, "load_corpus", lambda source: Corpus(documents[:2], documents[2:], 0, 0, "", []))
    found = [(one.label, one.group, one.text.split("\n")) for one in stdlib_topics(n_classes=2)]
    assert found == [
        ("other", "other/c.py", numbered("repack", 0, 8)),
        ("pack", "pack/a.py", numbered("packs", 0, 8)),
        ("pack", "pack/b.py", numbered("a", 0, 8)),
        ("pack", "pack/b.py", numbered("a", 8, 16)),
        ("pack", "pack/b.py", numbered("a", 16, 21)),
    ]


def test_there_are_enough_of_each_class_to_train_and_to_test(snippets):
    counts = Counter(snippet.label for snippet in snippets)
    assert len(counts) == 8
    assert min(counts.values()) >= 300  # 864 in Python 3.11; newer ones, and those without Tk, have smaller packages


def test_no_snippet_holds_the_answer_and_none_occurs_twice(snippets):
    names = "|".join({snippet.label for snippet in snippets})
    assert not any(re.search(rf"\b({names})\b", snippet.text, re.IGNORECASE) for snippet in snippets)
    assert len({snippet.text for snippet in snippets}) == len(snippets)
    assert all(5 <= len(snippet.text.split("\n")) <= 8 for snippet in snippets)


def test_a_split_by_file_is_possible(snippets):
    """Each file belongs to one class, and no class is mostly one file."""
    sizes: defaultdict[str, Counter] = defaultdict(Counter)
    for snippet in snippets:
        assert snippet.group.startswith(snippet.label + "/")
        sizes[snippet.label][snippet.group] += 1
    for files in sizes.values():
        assert max(files.values()) < 0.8 * sum(files.values())
