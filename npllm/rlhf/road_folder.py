"""The folder of a road: which task it belongs to, and being the only process that walks it.

`task.json` in it names the task and, where that is a file of the user's, the file and the
hash of its content. A file that was moved is the same task; one that was edited is not:
what is there was made, and judged, by what the file said before.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from npllm.errors import ConfigError, DataError
from npllm.files.atomic import remove_temporary_files, write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.locks import hold_folder
from npllm.files.strict_json import parse_json
from npllm.rlhf.tasks.task import EMBEDDED
from npllm.runs.new_run import Taken, first_free
from npllm.runs.run_folder import RunFolder

LARGEST_RECORD = LARGEST_TASK = 1 << 20  # bytes


@dataclass(frozen=True)
class TaskRecord:
    """A task by the name on the command line. file, sha256: None of an embedded one."""

    task: str
    file: str | None = None
    sha256: str | None = None

    def same(self, other: "TaskRecord") -> bool:
        """Whether the other one asks and judges as this one does."""
        return self.sha256 == other.sha256 and (self.sha256 is not None or self.task == other.task)


def record_of(name: str) -> TaskRecord:
    """Of a task that `load_task` knows."""
    if name in EMBEDDED:
        return TaskRecord(name)
    file = Path(name).resolve()
    return TaskRecord(file.stem, str(file), hashlib.sha256(read_bounded(file, LARGEST_TASK)).hexdigest())


@contextmanager
def hold_road(out: Path | None, task: TaskRecord) -> Iterator[Path]:
    """The folder of a task's road: `out` or, without it, the first of runs/rlhf-TASK,
    runs/rlhf-TASK-2 ... that is not another task's. No other process walks it meanwhile.

    Raises ConfigError when another process does, when `out` is another task's, and when the
    file of the task was edited since the road was begun.
    """
    with _hold(out, task) if out else first_free(f"rlhf-{task.task}", lambda path: _hold(path, task)) as path:
        yield path


@contextmanager
def _hold(path: Path, task: TaskRecord) -> Iterator[Path]:
    if RunFolder(path).config.exists():
        raise Taken(f"{path} holds a run and no road; choose another --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); choose another --out.") from error
    with ExitStack() as lock:
        try:
            busy = f"{path} is being walked by another process; wait until it ends, or stop it."
            lock.enter_context(hold_folder(path, busy))
        except ConfigError:
            _check_task(path, task)
            raise
        if any(path.glob("seed-*/*/config.toml")):  # before the first stage nothing is bound to a task
            _check_task(path, task)
        for folder in (path, *path.glob("seed-*")):
            remove_temporary_files(folder)
        write_atomically(_file(path), (json.dumps(asdict(task), indent=2) + "\n").encode())
        yield path


def _check_task(path: Path, task: TaskRecord) -> None:
    """Raise ConfigError unless a task can go on with what lies there."""
    owner = _owner(path)
    if owner is None or owner.same(task):
        return
    if owner.file is None or owner.file != task.file:
        raise Taken(f"{path} belongs to the task {owner.file or owner.task}; choose another --out.")
    raise ConfigError(
        f"{task.file} was edited since {path} was begun with it; choose another --out, or undo the edit, or delete "
        f"{_file(path)} to go on with both."
    )


def _owner(path: Path) -> TaskRecord | None:
    """Whose road a folder is; None where nobody wrote it down."""
    file = _file(path)
    if not file.exists():
        return None
    try:
        return TaskRecord(**parse_json(read_bounded(file, LARGEST_RECORD)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); delete it to go on with the task of this command.") from error


def _file(path: Path) -> Path:
    return path / "task.json"
