"""Servers for the tests, in a thread of the test's process, and requests to them."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from small_runs import PATIENCE

from npllm.serve.app import Limits
from npllm.serve.scheduler import Scheduler
from npllm.serve.server import BACKLOG, bound, made
from npllm.serve.weights import Source

HOST = "127.0.0.1"


class Serving(NamedTuple):
    """A server that runs. log: its lines, one for each request."""

    port: int
    scheduler: Scheduler
    source: Source
    log: list[str]

    @property
    def url(self) -> str:
        """The base address for the openai client."""
        return f"http://{HOST}:{self.port}/v1"

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)

    def ask(self, path: str, body=None, **headers) -> tuple[int, dict]:
        """Post a body (None = get); the status, and the JSON of the answer."""
        connection = self.connection()
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, raw, kind | headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def complete(self, **fields) -> dict:
        """The answer of /v1/completions, which must be 200."""
        status, answer = self.ask("/v1/completions", fields)
        assert status == 200, answer
        return answer

    def refusal(self, path: str, body, status: int) -> dict:
        """The error of an answer, which must have this status."""
        found, answer = self.ask(path, body)
        assert (found, list(answer)) == (status, ["error"])
        assert sorted(answer["error"]) == ["code", "message", "param", "type"]
        assert answer["error"]["message"].endswith(".")
        return answer["error"]


@contextmanager
def serving(path, *, key: str | None = None, limits: Limits = Limits()) -> Iterator[Serving]:  # noqa: B008
    """Serve a model while the block runs."""
    source, log = Source(path), []
    server, listening = made(source, HOST, key, limits, log.append), bound(HOST, 0)
    listening.listen(BACKLOG)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Serving(port, server.application.scheduler, source, log)
    finally:
        server.application.scheduler.stop()
        server.should_exit = True
        thread.join()
