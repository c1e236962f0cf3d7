"""The server: its socket, its limits on connections, its log and its end."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from rich.console import Console

from npllm.errors import ConfigError
from npllm.output import shell_word
from npllm.serve.app import Application, Limits
from npllm.serve.gate import Gate, read_key
from npllm.serve.weights import Source

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_CONNECTIONS = 256
BACKLOG = 128


class Server(uvicorn.Server):
    """A server that ends at once on Ctrl-C, with the texts that it writes."""

    def __init__(self, config: uvicorn.Config, application: Application):
        super().__init__(config)
        self.application = application

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
            "the environment variable NPLLM_API_KEY."
        )
    source = Source(path, checkpoint, report=lambda sentence: console.print(sentence, soft_wrap=True))
    with bound(host, port) as listening:
        server = made(source, host, key, limits, lambda line: console.print(line, soft_wrap=True))
        listening.listen(BACKLOG)
        address = f"http://{_in_url(host)}:{listening.getsockname()[1]}"
        console.print(f"{address}/ serves {path}; Ctrl-C ends the server.", soft_wrap=True)
        console.print(example(address, with_key=key is not None), soft_wrap=True)
        try:
            server.run([listening])
        finally:
            server.application.scheduler.stop()


def made(source: Source, host: str, key: str | None, limits: Limits, log: Callable[[str], None]) -> Server:
    """Return a server of a model, which `run` starts. log: as in `Gate`."""
    application = Application(source, limits)
    names = LOOPBACK if host in LOOPBACK else None
    return Server(configuration(Gate(application.starlette(), key=key, names=names, log=log)), application)


def configuration(app) -> uvicorn.Config:
    """The settings of uvicorn: quiet, with bounds on connections and headers."""
    return uvicorn.Config(
        app,
        http="h11",
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


def example(address: str, *, with_key: bool) -> str:
    """A command that asks the server for a text."""
    key = ' -H "Authorization: Bearer $NPLLM_API_KEY"' if with_key else ""
    body = shell_word('{"prompt": "The ", "max_tokens": 32}')
    return f'curl {address}/v1/completions{key} -H "Content-Type: application/json" -d {body}'


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
