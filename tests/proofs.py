"""Counts what a run of the tests has checked, and prints it in pytest's last lines.

A check is counted after it has succeeded, so a test that fails adds nothing. Each
process of pytest-xdist counts for itself and hands its counts to the process that
prints them. This module is a pytest plugin; `tests/conftest.py` registers it.
"""

from collections import Counter

import pytest

GRADIENTS = "gradients"  # arrays whose gradient agrees with differences of the loss
ENTRIES = "entries of gradients"  # those of them that were compared one by one
FAULTS = "faults"  # crashes, kills, signals, full disks after which a run went on to the same end
FILES = "files"  # hostile and damaged files that were refused with an error that names them

counts: Counter[str] = Counter()


def count(what: str, n: int = 1) -> None:
    """Add n checks of this kind, after they have succeeded."""
    counts[what] += n


def summary() -> list[str]:
    """One line for each kind that was checked at all."""
    sentences = {
        GRADIENTS: f"{{:,}} gradients agree with finite differences, {counts[ENTRIES]:,} of their entries one by one",
        FAULTS: "{:,} injected faults survived: the resumed run ended like the undisturbed one",
        FILES: "{:,} hostile or damaged files refused by name",
    }
    return [sentence.format(counts[what]) for what, sentence in sentences.items() if counts[what]]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["proofs"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add the counts of a pytest-xdist process that ended; a crashed one has none."""
    counts.update(getattr(node, "workeroutput", {}).get("proofs", {}))


def pytest_terminal_summary(terminalreporter):
    for line in summary():
        terminalreporter.write_line(line)
