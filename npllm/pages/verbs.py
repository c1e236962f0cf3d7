"""The verbs that make HTML pages, in the form of `npllm/verbs.py`."""

from collections.abc import Callable
from pathlib import Path

from npllm.output import one_line, show


def book(*, out: Path = Path("book.html")) -> None:
    """Write the book, Backprop through a Transformer, as one HTML page.

    Args:
        out: the file to write
    """
    from npllm.pages.book import write_book

    write_book(out)
    show(one_line(f"{out}: open it in a browser."))


PAGE_VERBS: dict[str, Callable[..., None]] = {"book": book}
