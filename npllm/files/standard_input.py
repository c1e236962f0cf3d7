"""Reading a text from standard input."""

import sys

from npllm.errors import DataError

LARGEST_INPUT = 1 << 26  # characters, which are read as a whole


def standard_input() -> str:
    """Return standard input. Raises DataError if it is too long, or not UTF-8."""
    try:
        text = sys.stdin.read(LARGEST_INPUT + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 ({error}); convert it to UTF-8.") from error
    if len(text) > LARGEST_INPUT:
        raise DataError(f"Standard input has more than {LARGEST_INPUT:,} characters; split it.")
    return text
