"""Makes a page from a template: one file, no network, no script but its own.

Styles and scripts of the folder `templates` are put inline. A page of `NAME.html` has
`style.css` and `script.js`, and `NAME.css` and `NAME.js` where they exist. All text is
escaped. A Content-Security-Policy allows no connection at all, images only as data, and
exactly this script (by its hash). So a text from a run cannot do anything, even if it
were not escaped somewhere.
"""

import base64
import errno
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from npllm.files.atomic import write_atomically
from npllm.files.unwritable import unwritable
from npllm.files.user_path import user_path
from npllm.pages.packages import check_packages, package

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """Return the HTML of a template, such as "book.html", with the values of `context`.

    A missing value is an error. Values are escaped unless they are `markupsafe.Markup`,
    which the functions of `markup.py`, `source.py` and `pictures.py` return.
    """
    name = Path(template).stem
    script = _inline(name, "script", ".js")
    return (
        _environment()
        .get_template(template)
        .render(
            style=package("markupsafe").Markup(_inline(name, "style", ".css")),
            script=package("markupsafe").Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **context,
        )
    )


def check_page(path: Path) -> None:
    """Raise what would stand in the way of a page, before a long computation starts.

    Raises ConfigError without the packages, and ResourceError for a path where no file
    can be written.
    """
    check_packages()
    path = user_path(path)
    if path.is_dir():
        reason = errno.EISDIR
    elif not path.parent.is_dir():
        reason = errno.ENOENT
    elif not os.access(path.parent, os.W_OK):
        reason = errno.EACCES
    else:
        return
    raise unwritable(path, OSError(reason, os.strerror(reason)))


def write_page(path: Path, html: str) -> None:
    """Write a page as UTF-8, as a whole or not at all. Raises ResourceError."""
    write_atomically(path, html.encode())


@cache
def _environment() -> Any:
    jinja2 = package("jinja2")
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _inline(name: str, common: str, ending: str) -> str:
    """The text of the common file and of the page's own one, if it has one."""
    files = (TEMPLATES / f"{common}{ending}", TEMPLATES / f"{name}{ending}")
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
