"""The server: its socket, its limits on connections, its log and its end."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from rich.console import Console
from uvicorn.protocols.http.h11_impl import H11Protocol

from npllm.errors import ConfigError
from npllm.serve.app import Application, Limits, example
from npllm.serve.gate import VARIABLE, Gate, read_key
from npllm.serve.weights import Source

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_CONNECTIONS = 256


class Server(uvicorn.Server):
    """A server that ends at once on Ctrl-C, with the texts that it writes.

    on_start: called when it answers, and Ctrl-C ends it in order.
    """

    def __init__(self, config: uvicorn.Config, application: Application, on_start: Callable[[], None]):
        super().__init__(config)
        self.application, self.on_start = application, on_start

    async def startup(self, sockets=None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        self.on_start()

    def handle_exit(self, sig, frame) -> None:
        """Take note of a signal, in uvicorn's words."""
        self.application.scheduler.stop()
        super().handle_exit(sig, frame)


def serve(
    path: Path,
    console: Console,
    *,
    checkpoint: str | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
) -> None:
    """Serve a model until Ctrl-C, which raises KeyboardInterrupt.

    Raises ConfigError for a port that is taken, a host that needs a key, and a model
    that judges texts, and DataError where there is no model.
    """
    key = read_key(api_key_file)
    if host not in LOOPBACK and key is None:
        raise ConfigError(
            f"Others can reach {host}, so it needs a key; put one into a file and name it with --api_key_file, or into "
            f"the environment variable {VARIABLE}."
        )
    source = Source(path, checkpoint, report=lambda sentence: console.print(sentence, soft_wrap=True))
    with bound(host, port) as listening:
        address = f"http://{_in_url(host)}:{listening.getsockname()[1]}"

        def announce() -> None:
            console.print(f"{address}/ serves {path}; Ctrl-C ends the server.", soft_wrap=True)
            console.print(example(address, with_key=key is not None), soft_wrap=True)

        server = made(source, host, key, limits, lambda line: console.print(line, soft_wrap=True), announce)
        try:
            server.run([listening])
        finally:
            server.application.scheduler.stop()


def made(
    source: Source,
    host: str,
    key: str | None,
    limits: Limits,
    log: Callable[[str], None],
    on_start: Callable[[], None],
) -> Server:
    """Return a server of a model, which `run` starts. log: as in `Gate`."""
    application = Application(source, limits, needs_key=key is not None)
    names = LOOPBACK if host in LOOPBACK else None
    gate = Gate(application.starlette(), key=key, names=names, log=log)
    return Server(configuration(gate, limits), application, on_start)


class Connection(H11Protocol):
    """A connection that is closed when it does not bring a request in time.

    uvicorn waits without an end for the first request, and for the rest of a head.
    """

    seconds: float
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait(True)

    def data_received(self, data: bytes) -> None:
        """Wait on, unless the head of a request is complete."""
        super().data_received(data)
        self._wait(self.cycle is None or self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._wait(False)

    def _wait(self, waits: bool) -> None:
        if waits and self._waiting is None:
            self._waiting = self.loop.call_later(self.seconds, self.transport.close)
        elif not waits and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def configuration(app, limits: Limits) -> uvicorn.Config:
    """The settings of uvicorn: quiet, with bounds on connections and heads."""
    return uvicorn.Config(
        app,
        http=type("Connection", (Connection,), {"seconds": limits.body_seconds}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )


def bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address. Raises ConfigError where there can be none."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"The port is {port}; set it from 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"The host {host!r:.80} has no address ({error.strerror}); name another.") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        reason = os.strerror(error.errno)
        raise ConfigError(
            f"Port {port} of {host} cannot be used ({reason}); name another with --port, or 0 for any free one."
        ) from None
    return made


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
