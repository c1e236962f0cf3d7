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
from npllm.serve.server import bound, made
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

    def post(self, path: str, fields: dict) -> http.client.HTTPConnection:
        """A connection on which a request was sent."""
        connection = self.connection()
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        return connection

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


class Brake:
    """Stops the scheduler at a token until it is released.

    held: set when the scheduler stands still. sizes: how many texts shared each pass.
    """

    def __init__(self, model, at: int):
        self.held, self.released, self.sizes = threading.Event(), threading.Event(), []
        self._extend_each = model.extend_each
        self._at = at

    def extend_each(self, tokens, joined):
        """In place of the model's."""
        self.sizes.append(len(tokens))
        if len(self.sizes) == self._at:
            self.held.set()
            assert self.released.wait(PATIENCE)
        return self._extend_each(tokens, joined)


@contextmanager
def braked(server: Serving, at: int = 1) -> Iterator[Brake]:
    """Brake the scheduler of a server in its pass number `at` from now on."""
    model = server.source.current().model
    brake = Brake(model, at)
    model.extend_each = brake.extend_each
    try:
        yield brake
    finally:
        brake.released.set()
        assert server.scheduler.wait_until_idle(PATIENCE)
        del model.extend_each


def announced(monkeypatch, thing, method: str) -> threading.Event:
    """An event that is set when a method of a thing has been called."""
    event, real = threading.Event(), getattr(thing, method)

    def call(*arguments):
        result = real(*arguments)
        event.set()
        return result

    monkeypatch.setattr(thing, method, call)
    return event


@contextmanager
def serving(path, *, key: str | None = None, limits: Limits = Limits()) -> Iterator[Serving]:  # noqa: B008
    """Serve a model while the block runs."""
    log: list[str] = []
    source = Source(path, report=log.append)
    started = threading.Event()
    server, listening = made(source, HOST, key, limits, log.append, started.set), bound(HOST, 0)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    assert started.wait(PATIENCE)
    try:
        yield Serving(port, server.application.scheduler, source, log)
    finally:
        server.application.scheduler.stop()
        server.should_exit = True
        thread.join()
