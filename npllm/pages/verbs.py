"""The verbs that make HTML pages, in the form of `npllm/verbs.py`."""

from collections.abc import Callable
from pathlib import Path

from tyro.conf import Positional

from npllm.errors import ConfigError
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
        name: folder of a run, a checkpoint in it, another folder with a model, such as
            one of Hugging Face, or a recipe (random weights)
        text: the line to learn from; none = a line of the validation text
        out: the file to write
    """
    from npllm.pages.microscope import write_microscope

    write_microscope(name, text, out, TextConsole())
    show(one_line(f"{out}: open it in a browser."))


def report(runs: Positional[tuple[Path, ...]], *, out: Path | None = None, serve: bool = False) -> None:
    """Write how a run went and what its model has learnt as one HTML page.

    Args:
        runs: folder of the run; of several runs, the page compares them
        out: the file to write; none = report.html in the folder of the run or, for
            several, comparison.html here
        serve: instead show a run in the browser while it trains, until Ctrl-C
    """
    from npllm.pages.live import serve as serve_live
    from npllm.pages.run_report import write_report

    if not runs:
        raise ConfigError("No run is named; name the folder of a run, such as runs/default.")
    if serve:
        if len(runs) > 1 or out:
            raise ConfigError("--serve shows a single run and writes no file; name one run, without --out.")
        serve_live(runs[0], TextConsole())
        return
    path = write_report(runs, out, TextConsole())
    show(one_line(f"{path}: open it in a browser."))


PAGE_VERBS: dict[str, Callable[..., None]] = {"book": book, "microscope": microscope, "report": report}
