"""How the folder of a new run is made.

    runs/.NAME.claim     locked by the process that will make runs/NAME
    runs/.NAME.draft     the run while it is prepared; renamed when it is complete
    runs/NAME            the run

So a folder runs/NAME is always a complete run. Both hidden names are locks (locks.py):
a killed process no longer holds them, and the next process takes over what it left.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from npllm.errors import ConfigError
from npllm.files.atomic import sync
from npllm.files.locks import LOCK, delete_held, empty_held, hold_folder, lock_file
from npllm.output import shell_word
from npllm.runs.checkpoint import checkpoint_files
from npllm.runs.run_folder import RunFolder

_made: set[tuple[int, int]] = set()  # device and inode of the lock of each run that this process made


class Taken(ConfigError):
    """The path of a new run exists, or another process is making a run there."""


@contextmanager
def claim_run(out: Path | None, name: str) -> Iterator[Path]:
    """The path of a new run, claimed while the block runs: `out` or, without it, the
    first of runs/NAME, runs/NAME-2 ... that is free.

    Raises ConfigError when `out` is taken or cannot be made.
    """
    with _claim(out) if out else first_free(name, _claim) as path:
        yield path


@contextmanager
def first_free(name: str, hold: Callable[[Path], AbstractContextManager[Path]]) -> Iterator[Path]:
    """The first of runs/NAME, runs/NAME-2 ... for which `hold` does not raise Taken,
    held while the block runs."""
    number, held = 1, ExitStack()
    while True:
        try:
            path = held.enter_context(hold(Path("runs") / (name if number == 1 else f"{name}-{number}")))
            break
        except Taken:
            number += 1
    with held:
        yield path


@contextmanager
def _claim(path: Path) -> Iterator[Path]:
    place = path.absolute()
    file = place.with_name(f".{place.name}.claim")
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(file)
    except BlockingIOError as error:
        raise Taken(_busy(path)) from error
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    try:
        check_free(path)
        yield path
    finally:
        file.unlink(missing_ok=True)  # before the lock is released: it is still ours
        os.close(descriptor)
        for folder in missing:
            with suppress(OSError):  # not empty: the run or another claim is in it
                folder.rmdir()


def check_free(path: Path) -> None:
    """Raise ConfigError unless `path` does not exist or is an empty folder."""
    if RunFolder(path).config.exists():
        raise Taken(
            f"{path} holds a run already; continue it (npllm resume {shell_word(path)}) or choose another --out."
        )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Taken(f"{path} exists and is not an empty folder; choose another --out.")


@contextmanager
def draft_run(path: Path) -> Iterator[RunFolder]:
    """A new run in a draft folder. It is renamed to `path` when the block ends, and
    deleted when the block fails.

    Raises ConfigError when `path` exists, which is then left unchanged, or when it
    cannot be made.
    """
    check_free(path)
    draft = _draft(path)
    with hold_folder(draft.path, _busy(path)):
        try:
            empty_held(draft.path)  # a killed process may have left files
            for folder in (draft.train_shard.parent, draft.checkpoints):
                folder.mkdir()
            yield draft
            _rename(draft, path)
        except BaseException:
            delete_held(draft.path)
            raise
        _made.add(_identity(RunFolder(path)))
        sync(path.absolute().parent)


def _draft(path: Path) -> RunFolder:
    """The draft folder of a run. It is new, or a killed process left it."""
    place = path.absolute()
    draft = place.with_name(f".{place.name}.draft")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        is_foreign = any(draft.iterdir()) and not (draft / LOCK).exists()
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    if is_foreign:
        raise Taken(f"{draft} exists and is not the draft of a run; move it or choose another --out.")
    return RunFolder(draft)


def _rename(draft: RunFolder, path: Path) -> None:
    try:
        os.rename(draft.path, path)
    except OSError as error:  # a process that makes no claim has created `path` meanwhile
        raise _cannot_be_made(path, error) from error


def discard_untrained(path: Path) -> None:
    """Delete a run that this process made and that has no checkpoint yet. Do nothing if
    `path` is anything else."""
    run = RunFolder(path)
    if _was_made_here(run):
        with run.lock():
            if _was_made_here(run) and not checkpoint_files(run.checkpoints):
                delete_held(path)


def _was_made_here(run: RunFolder) -> bool:
    try:
        return _identity(run) in _made
    except OSError:
        return False


def _identity(run: RunFolder) -> tuple[int, int]:
    status = os.stat(run.path / LOCK)
    return status.st_dev, status.st_ino


def _busy(path: Path) -> str:
    return f"{path} is being prepared by another process; wait until it ends or choose another --out."


def _cannot_be_made(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be made ({error.strerror}); choose another --out.")
