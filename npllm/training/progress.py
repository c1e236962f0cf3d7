"""The live view of a training run."""

import time
from collections.abc import Sequence
from math import log

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from npllm.optim import batch_size
from npllm.output import can_redraw, changing_output
from npllm.runs.ledger import Spike
from npllm.training.length import RunLength
from npllm.training.loop import Update

SMOOTHING = 0.95  # of the shown loss and speed: a mean over about 20 steps
PLAIN_LINES = 10  # lines for a whole run, where the output is not a terminal
BAR = 20  # columns
NOTEBOOK_SECONDS = 0.2  # between two updates of the line


class ProgressView:
    """A bar on a terminal and in a notebook, a few plain lines elsewhere. It shows
    smoothed figures; metrics.jsonl has the raw ones."""

    def __init__(
        self,
        console: Console,
        length: RunLength,
        first_step: int,
        *,
        tokens_per_byte: float | None,
        shown: tuple[str, ...] = (),
    ):
        self.console = console
        self.length = length
        self.tokens_per_byte = tokens_per_byte
        self.shown = shown
        self._loss: float | None = None
        self._seconds_per_token: float | None = None
        # The bar and the time left count sequences, not steps: with a growing batch the
        # early steps are short.
        self._n_steps: int | None = None  # None = not known yet
        self._bar = ProgressBar(None, self._sequences(first_step), width=BAR)
        self._start, self._n_trained = time.monotonic(), 0  # of this process, in seconds and sequences
        self._line: tuple[str, list[str], str] = ("", [], "")
        self._live = Live(console=console, get_renderable=self._rendered) if can_redraw(console) else None
        self._in_notebook, self._shown_at = changing_output(console), 0.0

    def __enter__(self) -> "ProgressView":
        self._start = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()
        if self._in_notebook:
            self._in_notebook.show(self._text())

    def show(self, update: Update) -> None:
        """Show one update."""
        self._loss = _smooth(self._loss, update.loss)
        self._seconds_per_token = _smooth(self._seconds_per_token, update.seconds / update.batch_tokens)
        if (n_steps := self.length.phase(update.step).end) != self._n_steps:
            self._n_steps, self._bar.total = n_steps, self._sequences(n_steps)
        self._bar.update(self._bar.completed + update.batch)
        self._n_trained += update.batch
        speed = f"{1e-3 / self._seconds_per_token:.1f}k tokens/s"
        figures = [f"loss {self._loss:.3f}", *self._others(update), speed]
        step = f"step {update.step}" + (f"/{n_steps}" if n_steps else "")
        self._line = step, figures, f"{self._time_left()} left"
        if self._in_notebook:
            self._update_notebook()
        elif not self._live and n_steps and update.step % max(1, n_steps // PLAIN_LINES) == 0:
            step, figures, left = self._line
            self.console.print(" · ".join([step, *figures, left]), soft_wrap=True)

    def _update_notebook(self) -> None:
        """Show the line in the notebook, a few times a second at most."""
        if time.monotonic() - self._shown_at > NOTEBOOK_SECONDS:
            self._in_notebook.show(self._text())
            self._shown_at = time.monotonic()

    def _text(self) -> str:
        """What a terminal would show, as plain text."""
        with self.console.capture() as captured:
            self.console.print(self._rendered())
        return captured.get().rstrip()

    def _time_left(self) -> str:
        """At the mean speed of this process, evaluations and checkpoints included."""
        elapsed = time.monotonic() - self._start
        if self._n_steps is None:
            seconds = max(0, round(self.length.budget - elapsed))
        else:
            seconds = max(0, round(elapsed / self._n_trained * (self._bar.total - self._bar.completed)))
        minutes, hours = seconds // 60, seconds // 3600
        return f"{hours}:{minutes % 60:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"

    def _rendered(self) -> RenderableType:
        step, figures, left = self._line
        n_figures, with_bar = what_fits(self.console.width, step, figures, left)
        text = " · ".join([*figures[:n_figures], left])
        if not with_bar:
            return " · ".join([step, text]) if step else ""
        table = Table.grid(padding=(0, 1))
        table.add_row(step, self._bar, text)
        return table

    def _others(self, update: Update) -> list[str]:
        """Bits per byte, or the stage's own figures, as text."""
        if self.tokens_per_byte is None:
            return [f"{name} {update.figures[name]:.3g}" for name in self.shown if name in update.figures]
        bits = self._loss * self.tokens_per_byte / log(2)  # nats per token -> bits per byte
        return [f"{bits:.3f} bits/byte"]

    def recovered(self, spike: Spike, done: str, step: int) -> None:
        """Print a spike and what was done about it (empty = print nothing), and set the
        bar back to `step`."""
        if done:
            line = f"Loss spike at step {spike.step}: {spike.reason}. {done}"
            self.console.print(line, soft_wrap=True)
        self._loss = None
        self._bar.update(self._sequences(step))

    def _sequences(self, n_steps: int) -> int:
        """The number of sequences in the first n_steps updates."""
        return sum(batch_size(step, self.length.batch) for step in range(n_steps))


def what_fits(width: int, step: str, figures: Sequence[str], left: str) -> tuple[int, bool]:
    """How many of the figures a line of this width has room for, and whether it has
    room for the bar.

    The last figures give way first, then the bar. The step, the first figure, which is
    the loss, and the time left always stay.
    """
    for n_figures in range(len(figures), 0, -1):
        text = " · ".join([*figures[:n_figures], left])
        if len(step) + 1 + BAR + 1 + len(text) <= width:
            return n_figures, True
    return 1, False


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else SMOOTHING * old + (1.0 - SMOOTHING) * new
