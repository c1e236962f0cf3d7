"""Shows the code of a function or a module, highlighted, with its file and line."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import npllm
from npllm.pages.packages import package

ROOT = Path(npllm.__file__).parents[1]
# Names, operators and spaces, which style.css gives no colour: most of the tokens.
PLAIN = re.compile(r'<span class="(?:n|nn|nb|bp|fm|vm|o|p|w)">([^<]*)</span>')


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
    label = f"{source.file}, line {source.line}"
    return (
        package("markupsafe")
        .Markup(
            '<figure class="source"><figcaption>{0}</figcaption>'
            '<pre class="code" tabindex="0" role="group" aria-label="Code of {0}"><code>{1}</code></pre></figure>'
        )
        .format(label, highlighted_text(source.text))
    )


def highlighted_text(text: str) -> Any:
    """Return Python code as HTML (`Markup`): a <span> for each token with a colour."""
    lexer = package("pygments.lexers").PythonLexer(stripnl=False, ensurenl=False)
    formatter = package("pygments.formatters").HtmlFormatter(nowrap=True)
    return package("markupsafe").Markup(PLAIN.sub(r"\1", package("pygments").highlight(text, lexer, formatter)))


def _below_docstring(text: str) -> tuple[str, int]:
    """The lines of a module below its docstring, and the number of the first one."""
    first = ast.parse(text).body[0]
    lines = text.splitlines(keepends=True)
    end = first.end_lineno if isinstance(first, ast.Expr) else 0
    while end < len(lines) and not lines[end].strip():
        end += 1
    return "".join(lines[end:]), end + 1
