"""What the package prints, on any terminal and into any file or pipe.

    text ── show, TextConsole ──> sys.stdout ── Output ──> the real stream

Two rules hold everywhere, and only this file knows them:

- Output never ends a training. A reader that leaves (`npllm pretrain | head -3`), a
  full disk or a terminal that is gone makes the rest of the output disappear. Only a
  verb whose result is its output, such as `npllm generate`, ends with its reader.
- Text from files, names and models is shown and never interpreted: rich reads no
  markup in it, a terminal reads no escape sequence, and a character that the output
  cannot encode is written as an escape, such as \\xe9.
"""

import codecs
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import track
from rich.status import Status
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ended
WIDEST_TABLE = 10_000  # columns
NOTEBOOK_WIDTH = 100  # columns
# All control characters but tab and line end, and those that reverse the order of text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
_CONTROL_OR_LINE_END = re.compile(f"{_CONTROL.pattern}|[\t\r\n\u2028\u2029]")
# What this package prints beyond ASCII.
_ASCII = {"·": "-", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "…": "...", "─": "-", "━": "-"}


def printable(text: str) -> str:
    """The text with its control characters as escapes, such as \\x1b."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The text as one line: tabs and line ends, too, are escapes. A file name may hold
    them."""
    return _CONTROL_OR_LINE_END.sub(lambda found: ascii(found[0])[1:-1], text)


def show(text: str, end: str = "\n") -> None:
    """Print text from a file or a model, at once. A terminal gets it printable, a file
    or a pipe as it is."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


def shell_word(text: str | Path) -> str:
    """The text as one word of a shell command, to copy from the screen. A path is never
    taken for an option."""
    if isinstance(text, Path) and os.fspath(text).startswith("-"):
        text = f"./{text}"
    word = os.fspath(text).replace("\\", "\\\\")
    escaped = one_line(word.encode("utf-8", "npllm").decode())
    if escaped == word:
        return shlex.quote(os.fspath(text))
    return "$'" + escaped.replace("'", "\\'") + "'"  # bash and zsh read the escapes in it


def can_redraw(console: Console) -> bool:
    """Whether a line can be shown that changes: on a terminal that can go back."""
    return console.is_terminal and not console.is_dumb_terminal and not console.quiet


def changing_output(console: Console) -> "NotebookOutput | None":
    """A new output in the notebook in which a console prints; None elsewhere."""
    shows = isinstance(console, TextConsole) and console.in_notebook and not console.quiet
    return NotebookOutput() if shows else None


class NotebookOutput:
    """A text in a notebook that can be replaced. It needs no widgets."""

    def __init__(self):
        from IPython.display import display  # a notebook has it

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, text: str) -> None:
        """Replace the text."""
        self._handle.update({"text/plain": text}, raw=True)


def tracked(items: Iterable[T], total: int, label: str, console: Console | None) -> Iterable[T]:
    """The items. While they are taken, a terminal shows how many of them are done.

    console: None = nothing is shown.
    """
    shows = console is not None and can_redraw(console)
    return track(items, label, total, console=console, transient=True) if shows else items


class TextConsole(Console):
    """A rich Console that shows text as it is, without markup, highlighting and control
    characters.

    in_notebook: whether it prints in a notebook. It prints plain text there, as into a
    file. (rich would make an output of its own of each line.)
    """

    def __init__(self, **options):
        self.in_notebook = Console().is_jupyter
        if self.in_notebook:
            # A kernel sets FORCE_COLOR, by which rich takes it for a terminal.
            options = {"width": NOTEBOOK_WIDTH, "force_terminal": False, "color_system": None} | options
        super().__init__(markup=False, highlight=False, emoji=False, force_jupyter=False, **options)

    def print(self, *objects: Any, **options) -> None:
        """Print texts and tables. A text with soft_wrap is one line. A table that is
        too wide for the console folds its cells, so that no figure is cut."""
        if options.get("soft_wrap"):
            objects = [one_line(each) if isinstance(each, str) else each for each in objects]
        unlimited = self.options.update(max_width=WIDEST_TABLE)
        for table in objects:
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = "fold"
                column.no_wrap &= self.measure(table, options=unlimited).minimum <= self.width
        super().print(*objects, **options)

    def render_str(self, text: str, **options) -> Text:
        """The text to print; rich calls this for each string, also in a table."""
        return super().render_str(printable(text), **options)

    def status(self, status: str, **options) -> Status:
        """A spinner with a line of text, in characters that the output can encode;
        nothing where no line can change."""
        console = self if can_redraw(self) else Console(file=io.StringIO(), force_jupyter=False)
        spinner = "dots" if self.encoding.startswith("utf") else "line"
        return Status(Text(one_line(status)), console=console, **({"spinner": spinner} | options))

    def on_broken_pipe(self) -> None:
        """Leave the error to `cli.main`."""
        raise  # noqa: PLE0704 (rich calls this where it handles the error)


class Output(io.TextIOBase):
    """A text stream that can encode every character.

    After the first error of the stream it drops what is written. Unless it `endures`,
    it raises that error, with its name in place of a file's.

    stream: the real one; None = it was closed before the process started.
    """

    def __init__(self, stream: TextIO | None, name: str, *, endures: bool):
        self.stream, self.name, self.endures = stream, name, endures
        self.error: OSError | None = None

    @property
    def encoding(self) -> str:
        """Of the real stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        """Of the real stream; `input` asks for it."""
        return getattr(self.stream, "errors", None) or "strict"

    def write(self, text: str) -> int:
        """Write all of the text, or drop it."""
        self._attempt(lambda: self.stream.write(text.encode(self.encoding, "npllm").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        """Write what the real stream holds back."""
        self._attempt(lambda: self.stream.flush())

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Of the real stream."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.stream is None:
            return
        if self.error is None:
            try:
                action()
            except OSError as error:
                self._lose(error)
        if self.error is not None and not self.endures:
            raise self.error

    def _lose(self, error: OSError) -> None:
        """Take note of an error, and say that the output ends here."""
        error.filename = self.name
        self.error = error
        with suppress(io.UnsupportedOperation):  # Python writes the rest when it ends: nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self.endures and self.name == "standard output":
            reason = "its reader has left" if isinstance(error, BrokenPipeError) else error.strerror
            print(f"npllm: standard output: {reason}; npllm goes on without it.", file=sys.stderr)


@contextmanager
def guarded_streams(*, endures: bool, silent: bool = False) -> Iterator[None]:
    """In the block, standard output and standard error are Outputs, and standard input
    is never None. endures: whether the process outlives its standard output. silent:
    drop standard output."""
    _occupy_descriptors()
    streams = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or io.StringIO()
    sys.stdout = Output(None if silent else sys.stdout, "standard output", endures=endures)
    sys.stderr = Output(sys.stderr, "standard error", endures=True)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams


def _occupy_descriptors() -> None:
    """Open descriptors 0, 1 and 2 where they are closed. Else the next file would get
    one of them, and what a library prints would end in it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks. A byte of a file name that is
    not UTF-8, which Python holds as a surrogate, is that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_substitute, error.object[error.start : error.end])), error.end


def _substitute(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _ASCII.get(character, character.encode("ascii", "backslashreplace").decode())


codecs.register_error("npllm", _escaped)
