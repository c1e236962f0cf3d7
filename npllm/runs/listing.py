"""The runs below a folder, for `npllm runs`."""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from npllm.errors import DataError, NpllmError
from npllm.files.user_path import user_path
from npllm.runs.checkpoint import checkpoint_files, count_parameters
from npllm.runs.checkpoint_store import read_entries
from npllm.runs.config_file import last_step_of, sources_of, stage_of
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import read_summary

# The figure of a run: the first of these that its summary.json has.
FIGURES = (
    ("val_bits_per_byte", "{:.3f} bits/byte"),
    ("accuracy", "accuracy {:.1%}"),
    ("val_loss", "loss {:.3f}"),
)


class Listed(NamedTuple):
    """A run as a row of texts. date: when it was made."""

    run: str
    stage: str
    size: str
    data: str
    result: str
    date: str


def list_runs(folder: Path) -> list[Listed]:
    """The runs in and below a folder, the oldest first.

    A run that cannot be read is a row as well: its result says why. Raises DataError
    when `folder` is not a folder.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name one that holds runs, or make a run first.")
    runs = sorted(_runs_below(folder), key=lambda run: (run.config.stat().st_mtime_ns, run.path))
    return [listed(folder, run) for run in runs]


def _runs_below(folder: Path) -> Iterator[RunFolder]:
    """Runs lie in the folder, or deeper, as those of a pipeline do, but not in one
    another."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # drafts are hidden
        if "config.toml" in names:
            folders.clear()
            yield RunFolder(Path(parent))


def listed(folder: Path, run: RunFolder) -> Listed:
    """The row of a run in or below a folder."""
    name = run.path.name if run.path == folder else run.path.relative_to(folder).as_posix()
    date = datetime.fromtimestamp(run.config.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        stage, sources = stage_of(run.config), [Path(source).name for source in sources_of(run.config)]
        checkpoints = checkpoint_files(run.checkpoints)
        size = _short(count_parameters(checkpoints[-1])) if checkpoints else ""
        return Listed(name, stage, size, ", ".join(sources or _records(run)), _result(run), date)
    except NpllmError as error:
        reason = str(error).replace(f"{run.path}{os.sep}", "").partition(";")[0]
        return Listed(name, "", "", "", f"broken: {reason:.200}", date)


def _records(run: RunFolder) -> list[str]:
    """The names of a later stage's records."""
    return sorted(path.stem for path in (run.path / "data").glob("*.jsonl"))


def _result(run: RunFolder) -> str:
    """The main figure of a finished run, and how far any other has come."""
    if not run.summary.exists():
        step = max(read_entries(run.checkpoints)[0], default=0)
        return f"step {step} of {last_step_of(run.config) or '?'}"
    return _figure(read_summary(run))


def _figure(summary: dict[str, Any]) -> str:
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    return next((text.format(numbers[name]) for name, text in FIGURES if name in numbers), "finished")


def _short(count: int) -> str:
    """A number of parameters in three digits, such as 1.07 M."""
    power, unit = next((pair for pair in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if count >= pair[0]), (1, ""))
    return f"{count / power:.3g}{unit}"
