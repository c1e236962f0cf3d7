"""The live view on terminals of every width and kind: what gives way, and what
stays."""

import io
import re
import sys
from itertools import count
from types import SimpleNamespace

import pytest

from npllm.optim import BatchConfig
from npllm.output import TextConsole
from npllm.training import progress
from npllm.training.config import LoopConfig, TrainConfig
from npllm.training.length import RunLength
from npllm.training.loop import Update
from npllm.training.progress import ProgressView, what_fits

STEPS = 1000
FIGURES = ["loss 3.891", "1.753 bits/byte", "10.0k tokens/s"]
BAR = "━" * 20


@pytest.fixture
def clock(monkeypatch):
    """A second passes between two looks at the clock."""
    ticks = count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def shown(width: int, n_updates: int = 3, *, first=0, figures=None, terminal="xterm") -> str:
    """What a run of a thousand steps writes. figures: those of a stage, such as
    reward."""
    console = TextConsole(
        file=io.StringIO(),
        force_terminal=terminal is not None,
        color_system=None,
        width=width,
        _environ={"TERM": terminal or ""},
    )
    config = LoopConfig(batch=BatchConfig(size=4), train=TrainConfig(steps=STEPS))
    kind = {"tokens_per_byte": None, "shown": tuple(figures)} if figures else {"tokens_per_byte": 0.5}
    with ProgressView(console, RunLength(config), first, **kind) as view:
        for step in range(first + 1, first + n_updates + 1):
            view.show(Update(step, 2.5, 1.0, 1e-3, 4, step * 64, 0.1, 64, figures or {}))
    return console.file.getvalue()


@pytest.mark.parametrize("figures", [None, {"accuracy": 0.625, "margin": 0.0123, "reward": -1.25, "kl": 3.75}])
@pytest.mark.parametrize("width", [10, 24, 40, 60, 80, 100, 140])
def test_step_loss_and_time_left_are_shown_in_every_width(clock, width, figures):
    text = shown(width, first=500, figures=figures)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text.rstrip().rsplit("\x1b[2K", 1)[-1])
    assert all(len(line) <= width for line in last.splitlines())
    words = " ".join(last.split())
    assert words.startswith("step 503/1000")
    assert "loss 2.500" in words
    assert words.endswith("left")
    assert ("━" in words) == (width >= 60)
    assert ("tokens/s" in words) == (width >= 100 and not figures or width == 140)


def test_the_speed_gives_way_first_and_the_bar_last():
    parts = ["step 441/494", FIGURES, "0:21 left"]
    fits = [what_fits(width, *parts) for width in range(1, 200)]
    assert list(dict.fromkeys(fits)) == [(1, False), (1, True), (2, True), (3, True)]
    for n_figures in range(1, 4):  # and each as soon as there is room
        text = " · ".join([*FIGURES[:n_figures], "0:21 left"])
        assert fits.index((n_figures, True)) + 1 == len(f"step 441/494 {BAR} {text}")


def test_where_no_line_can_change_there_are_plain_lines_with_the_time_left(clock):
    for terminal in (None, "dumb"):
        text = shown(80, 500, terminal=terminal)
        assert "\x1b" not in text
        lines = text.splitlines()
        assert [line.split(" ")[1] for line in lines] == [f"{step}/1000" for step in (100, 200, 300, 400, 500)]
        # The clock is looked at before the first step and for each update: half of
        # the steps take 500 seconds.
        assert lines[-1].endswith(" tokens/s · 8:20 left")


def test_hours_are_shown_as_hours(clock, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_LINES", STEPS)
    ticks = count(step=60)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    assert shown(80, 1, terminal=None).rstrip().endswith("· 16:39:00 left")


class Outputs(list):
    """The outputs of a notebook, as IPython.display makes them: all texts of each."""

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.append([data["text/plain"]])
        return SimpleNamespace(update=lambda data, raw: self[-1].append(data["text/plain"]))


@pytest.fixture
def notebook(monkeypatch):
    """The outputs of a notebook without widgets, in which rich finds itself."""
    outputs = Outputs()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a kernel sets it
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=outputs.display))
    return outputs


def train_shortly(console: TextConsole) -> None:
    """Show three updates and what is around them."""
    config = LoopConfig(batch=BatchConfig(size=4), train=TrainConfig(steps=3))
    console.print("before", style="yellow")
    with console.status("compiling"), ProgressView(console, RunLength(config), 0, tokens_per_byte=0.5) as view:
        for step in range(1, 4):
            view.show(Update(step, 2.5, 1.0, 1e-3, 4, step * 64, 0.1, 64, {}))
    console.print("after")


def test_a_notebook_has_one_line_that_changes_between_plain_text(clock, notebook, capsys):
    """Without escape sequences: not every notebook reads them."""
    train_shortly(TextConsole())
    (line,) = notebook
    assert [text.split(" ")[1] for text in line[1:]] == ["1/3", "2/3", "3/3", "3/3"]
    assert "━" in line[1]
    assert line[1].endswith("left")
    assert "\x1b" not in "".join(line)
    assert capsys.readouterr().out == "before\nafter\n"


def test_the_line_of_a_notebook_does_not_change_more_often_than_one_can_see(notebook, monkeypatch):
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 5.0))
    train_shortly(TextConsole())
    assert [text.split(" ")[1] for text in notebook[0][1:]] == ["1/3", "3/3"]


def test_a_quiet_console_shows_nothing_in_a_notebook(clock, notebook, capsys):
    train_shortly(TextConsole(quiet=True))
    assert notebook == []
    assert capsys.readouterr().out == ""
