"""Checking every file of a run: by its hash where it has one, else by its content.

The run may be training meanwhile. Its checkpoints are then listed, pruned and, after a
rollback, replaced while they are read. So a complaint about a checkpoint counts only if
the manifest and the file did not change during the check; otherwise the check is
repeated. The logs only grow or are replaced as a whole, and only complete lines are
read, so they can be read at any time.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from npllm.errors import DataError, NpllmError
from npllm.runs.checkpoint import checked_configs, checkpoint_files, checkpoint_path, load_checkpoint
from npllm.runs.checkpoint_store import MANIFEST, Entry, entry_of, read_manifest
from npllm.runs.config_file import last_step_of
from npllm.runs.ledger import Ledger
from npllm.runs.metrics import check_metrics_csv, read_metrics
from npllm.runs.run_folder import RunFolder
from npllm.runs.sample_log import read_samples
from npllm.runs.summary import read_summary

Check = Callable[[Path], object]  # raises an NpllmError where a file is damaged


def verify_run(run: RunFolder, inputs: Mapping[Path, Check]) -> Iterator[tuple[Path, str | None]]:
    """Each file that can be checked, and what is wrong with it (None = nothing).

    inputs: the files that the run started from, and the check of each; its stage names
    them.
    """
    checks: list[tuple[Path, Check]] = [
        *inputs.items(),
        (run.tokenizer, lambda _: run.load_tokenizer()),
        (run.checkpoints / MANIFEST, _manifest),
        *((path, _checkpoint) for path in checkpoint_files(run.checkpoints)),
        (run.metrics, read_metrics),
        (run.metrics_table, lambda path: check_metrics_csv(path, run.metrics)),
        (run.ledger, Ledger),
        (run.sample_log, read_samples),
        (run.summary, lambda path: _summary(run, path)),
    ]
    optional = (run.metrics, run.metrics_table, run.ledger, run.sample_log, run.summary)
    for path, check in checks:
        if not path.exists() and path in optional:
            continue  # not every run has these: a stopped one has no summary
        replaced = path.parent == run.checkpoints or path in (run.metrics_table, run.summary)
        complaint = _complaint(path, check, watched=(path, run.checkpoints / MANIFEST) if replaced else ())
        if check is _checkpoint and not path.exists():
            continue  # pruned meanwhile; if it should exist, the check of the manifest says so
        yield path, complaint


def _complaint(path: Path, check: Callable[[Path], object], watched: Sequence[Path]) -> str | None:
    """What is wrong with a file (None = nothing). The check is repeated until the
    watched files did not change during it."""
    while True:
        before = [_identity(file) for file in watched]
        try:
            check(path)
        except NpllmError as error:
            if [_identity(file) for file in watched] == before:
                return str(error)
        else:
            return None


def _identity(path: Path) -> tuple[int, int, int] | None:
    """A value that changes whenever the file is written; None where there is no
    file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _manifest(path: Path) -> None:
    entries, complaint = read_manifest(path.parent)
    if complaint:
        raise DataError(complaint)
    for file in (checkpoint_path(path.parent, entry.step) for entry in entries):
        if not file.exists():
            raise DataError(f"{path} lists {file.name}, which is missing; npllm resume uses another checkpoint.")


def _checkpoint(path: Path) -> None:
    """Check a checkpoint by its hash in the manifest. One that is not listed, because
    of a crash, is checked by its own hash."""
    entry = _listed(path)
    if entry is None:
        entry_of(path)
    else:
        description, arrays, _ = load_checkpoint(path, listed_sha256=entry.sha256)
        checked_configs(path, description, arrays)


def _listed(path: Path) -> Entry | None:
    """The manifest's entry of a checkpoint; None where it has none."""
    entries, _ = read_manifest(path.parent)
    return next((entry for entry in entries if checkpoint_path(path.parent, entry.step) == path), None)


def _summary(run: RunFolder, path: Path) -> None:
    """Check that the summary of a finished run has the hash of the newest checkpoint's
    weights. A run that was made longer keeps its old summary until its new end."""
    summary = read_summary(run)
    expected, steps = summary["params_sha256"], summary["steps"]
    newest = run.newest_checkpoint()
    end = checkpoint_path(run.checkpoints, _last_step(run) or steps)
    if newest != end or checkpoint_path(run.checkpoints, steps) < end:
        return
    if hashlib.sha256(load_checkpoint(newest).arrays["params"]).hexdigest() != expected:
        raise DataError(f"{path} describes other weights than {newest.name}; npllm resume writes it again.")


def _last_step(run: RunFolder) -> int | None:
    """The number of updates in the config. None where it has none, or where it cannot
    be read: then the check of config.toml complains."""
    with suppress(NpllmError):
        return last_step_of(run.config)
    return None
