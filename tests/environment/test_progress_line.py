"""The live view on terminals of every width and kind: what gives way, and what
stays."""

import io
import re
from itertools import count
from types import SimpleNamespace

import pytest

from npllm import output
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


@pytest.mark.parametrize(("widgets", "expected"), [(object(), True), (None, False)])
def test_a_notebook_with_widgets_has_a_bar(monkeypatch, widgets, expected):
    monkeypatch.setattr(output, "find_spec", lambda name: widgets)
    assert output.can_redraw(TextConsole(force_jupyter=True)) is expected


def test_nothing_is_displayed_in_a_notebook_that_cannot_redraw_or_must_be_quiet(monkeypatch):
    """rich writes into a notebook, whatever the file of a console, if it finds itself
    in one."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    assert not TextConsole().status("preparing").console.is_jupyter
    monkeypatch.setattr(output, "find_spec", lambda name: object())
    assert TextConsole().status("preparing").console.is_jupyter
    assert not TextConsole(quiet=True).status("preparing").console.is_jupyter
