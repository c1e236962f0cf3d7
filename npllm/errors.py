"""Every exception that npllm raises on purpose, and its warning.

The message of each is one plain sentence that names the file or field and says how to mend it;
the command line prints it without a traceback and ends with the class's exit code.
"""


class NpllmError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class NpllmWarning(UserWarning):
    """It goes on, but not quite as asked. The command line prints one line to stderr."""


class ConfigError(NpllmError):
    """Bad usage or configuration: an unknown field, a value out of range, fields that contradict each other."""

    exit_code = 2


class DataError(NpllmError):
    """A bad or corrupt input file: text, tokenizer, shard, checkpoint."""

    exit_code = 3


class TrainingError(NpllmError):
    """Training gave up: it cannot go on to a useful result."""

    exit_code = 4


class ResourceError(NpllmError):
    """Out of disk or memory."""

    exit_code = 5


class Interrupted(NpllmError):
    """Stopped on request, with the state saved."""

    exit_code = 130
