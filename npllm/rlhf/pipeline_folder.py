"""The folder of a pipeline: the task it belongs to, and a lock for one process.

`task.json` in it names the task. For a task in a file of the user's it also holds the
path of the file and the hash of its content. A file that was moved is the same task. An
edited file is another task: the stages in the folder were trained and judged with the
old content.
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
from npllm.files.strict_json import from_fields, parse_json
from npllm.files.user_path import user_path
from npllm.rlhf.tasks.task import EMBEDDED
from npllm.runs.new_run import Taken, first_free
from npllm.runs.run_folder import RunFolder

LARGEST_RECORD = LARGEST_TASK = 1 << 20  # bytes


@dataclass(frozen=True)
class TaskRecord:
    """A task as `task.json` names it.

    file, sha256: path and content hash of the user's file; None for an embedded task.
    """

    task: str
    file: str | None = None
    sha256: str | None = None

    def same(self, other: "TaskRecord") -> bool:
        """Whether both are the same task: the same content, or the same embedded
        name."""
        return self.sha256 == other.sha256 and (self.sha256 is not None or self.task == other.task)


def record_of(name: str) -> TaskRecord:
    """The record of a task. name: as `load_task` takes it."""
    if name in EMBEDDED:
        return TaskRecord(name)
    file = user_path(name).resolve()
    return TaskRecord(file.stem, str(file), hashlib.sha256(read_bounded(file, LARGEST_TASK)).hexdigest())


@contextmanager
def hold_pipeline(out: Path | None, task: TaskRecord) -> Iterator[Path]:
    """Yield the folder of a task's pipeline, locked against other processes.

    The folder is `out`. Without `out` it is the first of runs/rlhf-TASK,
    runs/rlhf-TASK-2, ... that does not belong to another task.

    Raises ConfigError when another process uses the folder, when `out` belongs to
    another task, and when the task's file was edited since the pipeline was started.
    """
    with _hold(out, task) if out else first_free(f"rlhf-{task.task}", lambda path: _hold(path, task)) as path:
        yield path


@contextmanager
def _hold(path: Path, task: TaskRecord) -> Iterator[Path]:
    if RunFolder(path).config.exists():
        raise Taken(f"{path} holds a run and no pipeline; choose another --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); choose another --out.") from error
    with ExitStack() as lock:
        try:
            busy = f"{path} is in use by another process; wait until it ends or stop it."
            lock.enter_context(hold_folder(path, busy))
        except ConfigError:
            _check_task(path, task)
            raise
        if any(path.glob("seed-*/*/config.toml")):  # without a stage nothing depends on the task
            _check_task(path, task)
        for folder in (path, *path.glob("seed-*")):
            remove_temporary_files(folder)
        write_atomically(_file(path), (json.dumps(asdict(task), indent=2) + "\n").encode())
        yield path


def _check_task(path: Path, task: TaskRecord) -> None:
    """Raise ConfigError unless the folder `path` belongs to this task, or to none."""
    owner = _owner(path)
    if owner is None or owner.same(task):
        return
    if owner.file is None or owner.file != task.file:
        raise Taken(f"{path} belongs to the task {owner.file or owner.task}; choose another --out.")
    raise ConfigError(
        f"{task.file} was edited since {path} was started with it; choose another --out, or undo the edit, or delete "
        f"{_file(path)} to continue with the edited file."
    )


def _owner(path: Path) -> TaskRecord | None:
    """The task that a folder belongs to; None if it has no task.json."""
    file = _file(path)
    if not file.exists():
        return None
    try:
        return from_fields(TaskRecord, parse_json(read_bounded(file, LARGEST_RECORD)))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete it to go on with the task of this command.") from error


def _file(path: Path) -> Path:
    return path / "task.json"
