"""Who may ask: this machine, or who has the key. And one line of log a request."""

import hmac
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from npllm.errors import ConfigError
from npllm.files.bounded_read import read_bounded
from npllm.files.user_path import user_path
from npllm.serve.errors import ApiError

VARIABLE = "NPLLM_API_KEY"
KEY = re.compile(r"[!-~]{16,512}")  # printable ASCII without blanks
OPEN_PATHS = ("/",)  # the page, which has no secrets and asks for the key


def read_key(file: Path | None) -> str | None:
    """Return the key of a file or, without one, of the environment; None = no key.

    Raises ConfigError for a key that is too short, and DataError for a file that cannot
    be read.
    """
    where = f"The key in {file}" if file else f"The key in {VARIABLE}"
    key = read_bounded(user_path(file), 4096).decode("utf-8", "replace").strip() if file else os.environ.get(VARIABLE)
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise ConfigError(f"{where} is not 16 to 512 printable ASCII characters without blanks; choose another.")
    return key


class Gate:
    """An ASGI application around another.

    key: what a client must send; None = nothing. names: the hosts by which a client may
    ask; None = any. A browser can be made to send requests to this machine under the
    name of another (DNS rebinding), and pages of other origins may try to post: both
    are refused. log: gets one line for each request.
    """

    def __init__(self, app, *, key: str | None, names: Sequence[str] | None, log: Callable[[str], None]):
        self.app, self.key, self.names, self.log = app, key, names, log

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.monotonic(), 0
        state = scope.setdefault("state", {})

        async def noted(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refused = self._refusal(scope)
        try:
            await (refused.response() if refused else self.app)(scope, receive, noted)
        finally:
            usage = state["usage"]() if "usage" in state else {}
            tokens = f" {usage['prompt_tokens']}+{usage['completion_tokens']} tokens" if usage else ""
            seconds = time.monotonic() - started
            self.log(f"{scope['method']} {scope['path']:.80} {status or 'left'}{tokens} {seconds:.2f} s")

    def _refusal(self, scope) -> ApiError | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.names is not None and _name_of(host) not in self.names:
            return ApiError(403, "The Host header names another machine; ask by the address that the server printed.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return ApiError(403, "The request comes from a page of another origin; ask from the server's own page.")
        if self.key is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key.encode()):
            return None
        what = "The API key is missing or wrong; send the header Authorization: Bearer KEY."
        return ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _name_of(host: str) -> str:
    """Return the Host header without its port and without the brackets of IPv6."""
    found = re.fullmatch(r"\[(.*)\](?::\d*)?|([^:]*)(?::\d*)?", host)
    return ((found[1] or found[2]) if found else host).lower()
