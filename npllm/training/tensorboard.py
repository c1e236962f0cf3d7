"""The metrics of a run for TensorBoard, in its folder `tensorboard`.

`--train.log tensorboard` switches this on. Each number of a line of metrics.jsonl is a
scalar of the same name. tensorboardX writes the event files: it needs neither
TensorFlow nor PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from npllm.errors import ConfigError


def check_log(log: str | None) -> None:
    """Raise ConfigError when the package that train.log needs is missing."""
    if log == "tensorboard" and find_spec("tensorboardX") is None:
        raise ConfigError(
            "train.log is tensorboard, which needs the package tensorboardX; install it (pip install 'npllm[log]'), or "
            "leave train.log out."
        )


class EventLog:
    """The event files of a run, or nothing where `log` is None.

    step: updates made so far. TensorBoard forgets what an earlier process logged after
    them.
    """

    def __init__(self, folder: Path, log: str | None, step: int):
        self._folder, self._log = folder, log
        self._writer: Any = None
        self.go_back(step)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_) -> None:
        if self._writer:
            self._writer.close()

    def go_back(self, step: int) -> None:
        """Forget what was logged after `step`."""
        if self._log is None:
            return
        self.__exit__()
        self._folder.mkdir(exist_ok=True)
        # The name of a file has the time in seconds: two of one second need a number.
        number = len(list(self._folder.iterdir()))
        open_writer = import_module("tensorboardX").SummaryWriter
        self._writer = open_writer(str(self._folder), purge_step=step + 1, filename_suffix=f".{number:06}")

    def append(self, record: dict[str, Any]) -> None:
        """Log the finite numbers of a line of metrics.jsonl."""
        if self._writer:
            for name, value in record.items():
                if name != "step" and isfinite(value):
                    self._writer.add_scalar(name, value, record["step"])
