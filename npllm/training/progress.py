"""The live view of a training run."""

from math import log

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from npllm.optim import batch_size
from npllm.runs.ledger import Spike
from npllm.training.config import LoopConfig
from npllm.training.loop import Update

SMOOTHING = 0.95  # of the shown loss and speed: a mean over about 20 steps
PLAIN_LINES = 10  # lines for a whole run, where the output is not a terminal


class ProgressView:
    """A bar on a terminal, a few plain lines elsewhere. It shows smoothed figures;
    metrics.jsonl has the raw ones."""

    def __init__(
        self,
        console: Console,
        config: LoopConfig,
        first_step: int,
        *,
        tokens_per_byte: float | None,
        shown: tuple[str, ...] = (),
        flops_per_token: float,
    ):
        self.console = console
        self.n_steps = config.train.steps
        self.tokens_per_byte = tokens_per_byte
        self.shown = shown
        self.flops_per_token = flops_per_token
        self._loss: float | None = None
        self._seconds_per_token: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        # The bar counts sequences, not steps: with a growing batch the early steps are
        # short.
        self._sequences = [batch_size(step, config.batch) for step in range(self.n_steps)]
        done = sum(self._sequences[:first_step])
        self._task = self._bar.add_task("", total=sum(self._sequences), completed=done, figures="")

    def __enter__(self) -> "ProgressView":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def show(self, update: Update, peak: float) -> None:
        """Show one update. peak: floating-point operations per second of the
        machine."""
        self._loss = _smooth(self._loss, update.loss)
        self._seconds_per_token = _smooth(self._seconds_per_token, update.seconds / update.batch_tokens)
        speed = 1.0 / self._seconds_per_token
        figures = " · ".join(
            [
                f"loss {self._loss:.3f}",
                *self._others(update),
                f"{speed / 1e3:.1f}k tokens/s",
                f"{100.0 * speed * self.flops_per_token / peak:.0f} % of peak",
            ]
        )
        step = f"step {update.step}/{self.n_steps}"
        self._bar.update(self._task, advance=update.batch, description=step, figures=figures)
        if not self.console.is_terminal and update.step % max(1, self.n_steps // PLAIN_LINES) == 0:
            self.console.print(f"{step} · {figures}", highlight=False, soft_wrap=True)

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
            self.console.print(line, highlight=False, soft_wrap=True)
        self._loss = None
        self._bar.update(self._task, completed=sum(self._sequences[:step]))


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else SMOOTHING * old + (1.0 - SMOOTHING) * new
