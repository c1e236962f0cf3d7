"""Counts the lines of Python that code runs: work, measured alike on every machine."""

import sys
from contextlib import contextmanager


class LineCount:
    executed = 0


@contextmanager
def count_lines(file_name):
    """Count the lines executed in functions of the files with this name.

    Each turn of a comprehension counts too.
    """
    count = LineCount()

    def trace_lines(_frame, event, _argument):
        count.executed += event == "line"
        return trace_lines

    def trace_calls(frame, _event, _argument):
        return trace_lines if frame.f_code.co_filename.endswith(file_name) else None

    outer_trace = sys.gettrace()
    sys.settrace(trace_calls)
    try:
        yield count
    finally:
        sys.settrace(outer_trace)
