"""The checkpoints of a run: written in the background, listed with their hashes,
pruned.

    checkpoints/step-00000200.h5 ...    see checkpoint.py
    checkpoints/manifest.json           per file: SHA-256, step, validation loss, and
                                        the number of rollbacks made before it

A save writes the checkpoint atomically (atomic.py), then the manifest, and then deletes
the checkpoints that are no longer kept. So the manifest lists only whole files at any
time. A crash may leave a whole file that is not listed; it is recognised by its own
hash.

A checkpoint is saved every `every` steps (these are scheduled), whenever the validation
loss is the lowest so far, at the end, and when somebody stops the run. These are kept:
- the newest,
- the best, by validation loss,
- of the scheduled ones the last `keep`,
- an anchor, scheduled and at least 100 steps older than the last scheduled one, because
  damage may be noticed late,
- the scheduled one that will become the next anchor.

An unscheduled checkpoint only serves to resume, and to be used as the best. Only
scheduled ones can be rolled back to, and which of them are kept depends on no other.
Otherwise a run that was stopped would end with other weights than one that was not.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from threading import Thread
from types import TracebackType

from npllm.errors import DataError
from npllm.files.atomic import remove_temporary_files, sync, write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import check_fields, from_fields, parse_json
from npllm.files.unwritable import unwritable
from npllm.runs.checkpoint import (
    Checkpoint,
    Saveable,
    checked_configs,
    checkpoint_files,
    checkpoint_image,
    checkpoint_path,
    load_checkpoint,
    seal,
)

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
ANCHOR_AGE = 100  # steps
MOST_BESIDES_KEEP = 4  # files: the newest, the best, the anchor and the next anchor
LARGEST_MANIFEST = 1 << 20  # bytes


@dataclass(frozen=True)
class Entry:
    """A checkpoint's entry in the manifest.

    val_loss: nats per token, None where it was not measured.
    """

    step: int
    sha256: str
    val_loss: float | None
    rollbacks: int


class CheckpointStore:
    """The checkpoints in a folder. `save` returns at once; a background thread writes.

    every: steps between scheduled checkpoints. refused: each file that cannot be used,
    and the reason.
    """

    def __init__(self, folder: Path, *, keep: int, every: int):
        self.folder = folder
        self.keep = keep
        self.every = every
        self.entries, self.refused = read_entries(folder)
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def path(self, step: int) -> Path:
        """The path of the checkpoint after `step` updates."""
        return checkpoint_path(self.folder, step)

    def scheduled(self, step: int) -> bool:
        """Whether a checkpoint is scheduled after `step` updates. Only scheduled ones
        can be rolled back to."""
        return step % self.every == 0

    def refuse(self, step: int, why: str) -> None:
        """Stop using a checkpoint. Its file stays until the run reaches this step
        again."""
        self.refused[self.path(step)] = why
        del self.entries[step]

    def load(self, step: int) -> Checkpoint:
        """The content of a checkpoint. Raises DataError unless the file is whole and
        has the hash in the manifest."""
        return load_checkpoint(self.path(step), listed_sha256=self.entries[step].sha256)

    def best(self) -> Entry | None:
        """The entry with the lowest validation loss; None if no entry has one. Waits
        for the last save, which may be the best."""
        self.wait()
        return best_of(self.entries.values())

    def would_be_best(self, val_loss: float) -> bool:
        """Whether a validation loss is lower than that of every checkpoint."""
        best = self.best()
        return val_loss < (best.val_loss if best else inf)

    def save(self, state: Saveable, val_loss: float | None) -> None:
        """Take a snapshot and start writing it in the background. Raises the error of
        the previous save, if it failed.

        val_loss: None where it was not measured. One that is not finite, which JSON
        cannot hold, counts as not measured.
        """
        self.wait()
        val_loss = val_loss if val_loss is not None and isfinite(val_loss) else None
        image = checkpoint_image(state, val_loss)
        self._thread = Thread(
            target=self._try_to_write, args=(state.step, image, val_loss, state.rollbacks), daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises ResourceError when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of the background thread, if it failed since the last
        call."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _try_to_write(self, *snapshot) -> None:
        try:
            self._write(*snapshot)
        except BaseException as error:  # the training thread raises it in its next check()
            self._error = error

    def _write(self, step: int, image: memoryview, val_loss: float | None, rollbacks: int) -> None:
        digest = seal(image)
        write_atomically(self.path(step), image)
        self.entries[step] = Entry(step, digest, val_loss, rollbacks)
        self._write_manifest()
        self.prune()

    def _write_manifest(self) -> None:
        table = {self.path(step).name: asdict(entry) for step, entry in sorted(self.entries.items())}
        document = {"version": MANIFEST_VERSION, "checkpoints": table}
        write_atomically(self.folder / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())

    def prune(self) -> None:
        """Delete the checkpoints that are not kept. A crash meanwhile leaves too many
        checkpoints, never too few."""
        self.drop(set(self.entries) - kept(self.entries, keep=self.keep, every=self.every))

    def drop(self, steps: set[int]) -> None:
        """Delete these checkpoints, first from the manifest, then from the disk."""
        if not steps:
            return
        for step in steps:
            del self.entries[step]
        self._write_manifest()
        try:
            for step in steps:
                with suppress(FileNotFoundError):
                    os.unlink(self.path(step))
            sync(self.folder)
        except OSError as error:
            raise unwritable(error.filename, error, "deleted") from error

    def __enter__(self) -> "CheckpointStore":
        remove_temporary_files(self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not KeyboardInterrupt:  # after a second interrupt, do not wait
            self.wait()


def kept(entries: dict[int, Entry], *, keep: int, every: int) -> set[int]:
    """The steps whose checkpoints are kept, by the rules in this module's docstring."""
    if not entries:
        return set()
    scheduled = sorted(step for step in entries if step % every == 0)
    anchor_end = scheduled[-1] - ANCHOR_AGE if scheduled else 0
    old = [step for step in scheduled if step <= anchor_end]
    young = [step for step in scheduled if step > anchor_end]
    best = best_of(entries.values())
    return {max(entries), *scheduled[-keep:], *([best.step] if best else []), *old[-1:], *young[:1]}


def best_of(entries: Iterable[Entry]) -> Entry | None:
    """The entry with the lowest validation loss, the first of equal ones; None if no
    entry has one."""
    judged = [entry for entry in entries if entry.val_loss is not None]
    return min(judged, key=lambda entry: (entry.val_loss, entry.step), default=None)


def read_entries(folder: Path) -> tuple[dict[int, Entry], dict[Path, str]]:
    """The entries of a folder's checkpoints by their steps, and each file that cannot
    be used, with the reason.

    The entries are those of the manifest, and those of the other files that are whole.
    """
    listed, why = read_manifest(folder)
    entries, refused = {entry.step: entry for entry in listed}, {folder / MANIFEST: why} if why else {}
    listed_files = {checkpoint_path(folder, step) for step in entries}
    for path in checkpoint_files(folder):
        if path not in listed_files:
            try:
                entry = entry_of(path)
            except DataError as error:
                refused[path] = str(error)
            else:
                entries[entry.step] = entry
    return entries, refused


def read_manifest(folder: Path) -> tuple[list[Entry], str | None]:
    """The manifest's entries, and what is wrong with it (None = nothing). A folder
    without a manifest has no entries."""
    path = folder / MANIFEST
    try:
        content = read_bounded(path, LARGEST_MANIFEST)
    except DataError as error:
        return [], None if isinstance(error.__cause__, FileNotFoundError) else str(error)
    try:
        document = parse_json(content)
        check_fields(document, {"version": int, "checkpoints": dict})
        if document["version"] != MANIFEST_VERSION:
            raise ValueError(f"it has version {document['version']!r:.20}")
        entries = [from_fields(Entry, fields) for fields in document["checkpoints"].values()]
        if list(document["checkpoints"]) != [checkpoint_path(folder, entry.step).name for entry in entries]:
            raise ValueError("its file names and steps disagree")
    except ValueError as error:
        return [], f"{path} is damaged ({error}); delete it, and npllm resume makes it again from the checkpoints."
    return entries, None


def entry_of(path: Path) -> Entry:
    """The manifest entry of a checkpoint file, made from its content. Raises DataError
    when the file is not a whole checkpoint, or is one of another step than its name
    says."""
    description, arrays, sha256 = load_checkpoint(path)
    checked_configs(path, description, arrays)
    counters = description["counters"]
    try:
        check_fields(counters, {"updates": int, "rollbacks": int})
    except ValueError as error:
        raise DataError(f"{path} has unusable counters ({error}); use another checkpoint.") from error
    entry = Entry(counters["updates"], sha256, description["val_loss"], counters["rollbacks"])
    if path != checkpoint_path(path.parent, entry.step):
        raise DataError(f"{path} holds the state after step {entry.step}; rename the file to that step.")
    return entry
