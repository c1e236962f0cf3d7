"""How the folder of a new run is made.

    runs/.NAME.claim     locked by the process that will make runs/NAME
    runs/.NAME.draft     the run while it is prepared; renamed when it is complete
    runs/NAME            the run

So a folder runs/NAME is always a complete run. Both hidden names are locks (locks.py):
a killed process no longer holds them, and the next process takes over what it left.

A folder that exists cannot always be replaced by another one: it may be a mount point
or the current folder, or lie in a folder that cannot be written. So it is filled where
it is:

    NAME/.claim          locked by the process that makes the run here
    NAME/config.toml     written last: without it the folder is no run

There, only files that npllm makes are ever deleted.
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

CLAIM = ".claim"  # in an existing folder
# What a run holds before its first checkpoint, in an existing folder.
PARTS = {
    CLAIM, LOCK, "config.toml", "tokenizer.json", "data", "models", "checkpoints", "metrics.jsonl", "ledger.jsonl",
    "tensorboard",
}  # fmt: skip
OF_THE_DISK = {"lost+found"}  # the root of an ext4 disk is never empty

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
    check_free(path)  # before an existing folder gets the file of a claim
    place = _place(path)
    file = place / CLAIM if place.is_dir() else place.with_name(f".{place.name}.claim")
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


def _place(path: Path) -> Path:
    """The folder that a path names, where links are followed. It need not exist."""
    return Path(os.path.realpath(path))


def check_free(path: Path) -> None:
    """Raise ConfigError unless `path` does not exist or is an empty folder."""
    try:
        if RunFolder(path).config.exists():
            raise Taken(
                f"{path} holds a run already; continue it (npllm resume {shell_word(path)}) or choose another --out."
            )
        is_loop = _place(path).is_symlink()
        if is_loop or (path.exists() and not (path.is_dir() and _is_empty(path))):
            raise Taken(f"{path} exists and is not an empty folder; choose another --out.")
    except OSError as error:
        raise _cannot_be_made(path, error) from error


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed while it
    made a run there."""
    names = set(os.listdir(folder)) - OF_THE_DISK
    return not names or (CLAIM in names and all(map(_is_part, names)))


def _is_part(name: str) -> bool:
    return name in PARTS or (name.startswith(".") and name.endswith(".tmp"))


@contextmanager
def draft_run(path: Path) -> Iterator[RunFolder]:
    """A new run in a draft folder. It is renamed to `path` when the block ends, and
    deleted when the block fails. The draft of a run in an existing folder that is
    claimed is this folder itself.

    Raises ConfigError when `path` exists, which is then left unchanged, or when it
    cannot be made.
    """
    check_free(path)
    place = _place(path)
    draft = RunFolder(place) if _is_filled_in_place(place) else _draft(place, path)
    with hold_folder(draft.path, _busy(path)):
        try:
            _empty(draft.path)  # a killed process may have left files
            for folder in (draft.train_shard.parent, draft.checkpoints):
                folder.mkdir()
            yield draft
            if draft.path != place:
                _rename(draft, place)
        except BaseException:
            _discard(draft.path)
            raise
        _made.add(_identity(RunFolder(place)))
        sync(place if draft.path == place else place.parent)


def _is_filled_in_place(place: Path) -> bool:
    return (place / CLAIM).exists()


def _empty(folder: Path) -> None:
    """Delete what a held folder holds; in one that is filled in place, only npllm's."""
    if _is_filled_in_place(folder):
        empty_held(folder, lambda name: name != CLAIM and _is_part(name))
    else:
        empty_held(folder)


def _discard(folder: Path) -> None:
    """Delete a held folder; of one that is filled in place, only what npllm made."""
    if _is_filled_in_place(folder):
        _empty(folder)
        (folder / LOCK).unlink()
    else:
        delete_held(folder)


def _draft(place: Path, path: Path) -> RunFolder:
    """The draft folder of a run. It is new, or a killed process left it."""
    draft = place.with_name(f".{place.name}.draft")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        is_foreign = any(draft.iterdir()) and not (draft / LOCK).exists()
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    if is_foreign:
        raise Taken(f"{draft} exists and is not the draft of a run; move it or choose another --out.")
    return RunFolder(draft)


def _rename(draft: RunFolder, place: Path) -> None:
    try:
        os.rename(draft.path, place)
    except OSError as error:  # a process that makes no claim has created it meanwhile
        raise _cannot_be_made(place, error) from error


def discard_untrained(path: Path) -> None:
    """Delete a run that this process made and that has no checkpoint yet. Do nothing if
    `path` is anything else."""
    run = RunFolder(_place(path))
    if _was_made_here(run):
        with run.lock():
            if _was_made_here(run) and not checkpoint_files(run.checkpoints):
                _discard(run.path)


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
