"""Every exception that npllm raises on purpose, and its warning.

Each message is one plain sentence, `what is wrong; what to do.`, and names the file or
field. The command line prints it without a traceback and ends with the exit code of the
class. A name in it may hold any character: the command line shows a line end as an
escape.
"""

from collections.abc import Sequence


class NpllmError(Exception):
    """Base of all errors raised on purpose.

    message: the sentence. listing: lines to print below it.
    """

    exit_code = 1

    def __init__(self, message: str = "", listing: Sequence[str] = ()):
        super().__init__(message)
        self.message, self.listing = message, listing

    def __str__(self) -> str:
        return "\n  ".join([self.message, *self.listing])

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, and no traceback, as on the command
        line."""
        return [f"{type(self).__name__}: {self}"]


class NpllmWarning(UserWarning):
    """A request is followed only in part.

    The command line prints the warning as one line to stderr.
    """


class ConfigError(NpllmError):
    """Bad usage or configuration.

    Examples: an unknown field, a value out of range, fields that contradict each other.
    """

    exit_code = 2


class DataError(NpllmError):
    """A bad or corrupt input file: text, tokenizer, shard, checkpoint."""

    exit_code = 3


class TrainingError(NpllmError):
    """Training gave up, because it cannot reach a useful result."""

    exit_code = 4


class ResourceError(NpllmError):
    """Out of disk or memory."""

    exit_code = 5


class Interrupted(NpllmError):
    """Stopped on request, with the state saved."""

    exit_code = 130
