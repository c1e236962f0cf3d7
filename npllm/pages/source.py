"""Shows the code of a function or a module, highlighted, with its file and line."""

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import npllm
from npllm.pages.packages import package

ROOT = Path(npllm.__file__).parents[1]


class Source(NamedTuple):
    """Code as it stands in a file of the package.

    text: the code. file: relative to the folder that holds the package. line: of the
    first line of the text, from 1.
    """

    text: str
    file: str
    line: int


def source_of(thing: Any) -> Source:
    """Return the code of a function or a class, or of a module below its docstring.

    A compiled function of Numba is shown as it was written.
    """
    thing = getattr(thing, "py_func", thing)
    if isinstance(thing, ModuleType):
        text, line = _below_docstring(inspect.getsource(thing))
    else:
        lines, line = inspect.getsourcelines(thing)
        text = "".join(lines)
    return Source(text.rstrip() + "\n", Path(inspect.getsourcefile(thing)).relative_to(ROOT).as_posix(), line)


def highlighted(thing: Any) -> Any:
    """Return HTML (`Markup`): the highlighted code below its file and line."""
    source = source_of(thing)
    lexer = package("pygments.lexers").PythonLexer(stripnl=False)
    formatter = package("pygments.formatters").HtmlFormatter(nowrap=True)
    code = package("pygments").highlight(source.text, lexer, formatter)
    return (
        package("markupsafe")
        .Markup(
            '<figure class="source"><figcaption>{}, line {}</figcaption>'
            '<pre class="code" tabindex="0"><code>{}</code></pre></figure>'
        )
        .format(source.file, source.line, package("markupsafe").Markup(code))
    )


def _below_docstring(text: str) -> tuple[str, int]:
    """The lines of a module below its docstring, and the number of the first one."""
    first = ast.parse(text).body[0]
    lines = text.splitlines(keepends=True)
    end = first.end_lineno if isinstance(first, ast.Expr) else 0
    while end < len(lines) and not lines[end].strip():
        end += 1
    return "".join(lines[end:]), end + 1
