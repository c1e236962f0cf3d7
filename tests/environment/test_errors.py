"""Errors as a notebook shows them."""

from npllm.errors import DataError


def test_a_notebook_shows_the_message_without_a_traceback():
    """IPython asks an exception for this method before it makes a traceback."""
    error = DataError("a.txt has 2 bad lines; mend them.", ["line 1", "line 7"])
    assert error._render_traceback_() == ["DataError: a.txt has 2 bad lines; mend them.\n  line 1\n  line 7"]
