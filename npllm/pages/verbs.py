"""The verbs that make HTML pages, in the form of `npllm/verbs.py`."""

from collections.abc import Callable
from pathlib import Path

from tyro.conf import Positional

from npllm.output import TextConsole, one_line, show


def book(*, out: Path = Path("book.html")) -> None:
    """Write the book, Backprop through a Transformer, as one HTML page.

    Args:
        out: the file to write
    """
    from npllm.pages.book import write_book

    write_book(out)
    show(one_line(f"{out}: open it in a browser."))


def microscope(name: Positional[str], *, text: str | None = None, out: Path = Path("microscope.html")) -> None:
    """Show one training step, operation by operation, as one HTML page.

    Args:
        name: folder of a run, a checkpoint in it, or a recipe (random weights)
        text: the line to learn from; none = a line of the validation text
        out: the file to write
    """
    from npllm.pages.microscope import write_microscope

    write_microscope(name, text, out, TextConsole())
    show(one_line(f"{out}: open it in a browser."))


PAGE_VERBS: dict[str, Callable[..., None]] = {"book": book, "microscope": microscope}
