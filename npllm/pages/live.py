"""`npllm report RUN --serve`: a page in the browser that follows a run while it trains.

The server is of the standard library: one page and one stream of events need no more,
and it ends at once with Ctrl-C. It listens on this machine only, and answers only
requests that name this machine, so that no page of the internet can read along.

The browser keeps the stream open and opens it again when it was cut off. Whenever the
files of the run change, the server draws the changing part of the page anew and sends
it. So after a rollback, which removes lines of metrics.jsonl, the page shows what the
run has now.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console

from npllm.errors import NpllmError
from npllm.pages.columns import MetricsLog
from npllm.pages.packages import check_packages
from npllm.pages.page import render
from npllm.pages.run_report import Problems, read_files, run_charts, shown_samples, state_of
from npllm.runs.run_folder import RunFolder, open_run

HOST, PORT = "127.0.0.1", 8017  # another port where this one is taken
NAMES = (HOST, "localhost")  # by which a browser may ask for the page
SECONDS = 1.0  # between two looks at the files
BEATS = 15  # looks after which a stream without news sends a sign of life


def serve(path: Path, console: Console) -> None:
    """Show a run in the browser until Ctrl-C, which raises KeyboardInterrupt."""
    check_packages()
    with live_server(open_run(path)) as server:
        console.print(f"http://{HOST}:{server.server_port}/ shows {path} while it trains; Ctrl-C ends the server.")
        server.serve_forever()


def live_server(run: RunFolder, seconds: float = SECONDS) -> ThreadingHTTPServer:
    """A server of the page of a run. seconds: between two looks at its files."""
    handler = type("Handler", (Handler,), {"run": run, "seconds": seconds})
    try:
        return ThreadingHTTPServer((HOST, PORT), handler)
    except OSError:  # the port is taken
        return ThreadingHTTPServer((HOST, 0), handler)


class Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page, and GET /events with the stream of its parts."""

    run: RunFolder
    seconds: float

    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0]
        answers = {"/": self._send_page, "/events": self._send_events}
        if name not in NAMES or self.path not in answers:
            self.send_error(403 if name not in NAMES else 404)
            return
        with suppress(ConnectionError):  # the browser has left
            answers[self.path]()

    def log_message(self, *_) -> None:
        """Print nothing for a request."""

    def _send_page(self) -> None:
        part = live_part(self.run, MetricsLog(self.run.metrics))
        page = render("live.html", name=self.run.path.resolve().name, part=part, contents=[]).encode()
        self._send_head("text/html; charset=utf-8", len(page))
        self.wfile.write(page)

    def _send_events(self) -> None:
        self._send_head("text/event-stream")
        for part in changes(self.run, self.seconds):
            lines = ": still here\n\n" if part is None else f"event: part\ndata: {json.dumps(str(part))}\n\n"
            self.wfile.write(lines.encode())
            self.wfile.flush()

    def _send_head(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()


def changes(run: RunFolder, seconds: float) -> Iterator[str | None]:
    """Yield the changing part of the page now and whenever it changes, without end.

    None is a sign of life.
    """
    log, pause = MetricsLog(run.metrics), threading.Event()
    drawn, quiet = None, 0
    while True:
        now = signature(run)
        quiet = 0 if now != drawn else quiet + 1
        if now != drawn:
            yield live_part(run, log)
        elif quiet % BEATS == 0:
            yield None
        drawn = now
        pause.wait(seconds)


def signature(run: RunFolder) -> list[tuple[int, int, int] | None]:
    """A value that changes with the files that the page shows."""
    found = []
    for path in (run.config, run.metrics, run.ledger, run.sample_log, run.summary):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def live_part(run: RunFolder, log: MetricsLog) -> str:
    """The part of the page that changes while a run trains, as HTML."""
    problems = Problems(run)
    try:
        files = read_files(run, log, problems)
    except NpllmError as error:  # the folder is gone
        return render("live_part.html", state=str(error), charts=[], events=[], sample=None, problems=[])
    samples = problems.part(lambda: shown_samples(run), [])
    return render(
        "live_part.html",
        state=state_of(files),
        charts=run_charts(run, files, problems),
        events=files.events.listed[-10:],
        sample=samples[-1] if samples else None,
        problems=problems.sentences,
    )
