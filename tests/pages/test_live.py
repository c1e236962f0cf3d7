"""The live page of a run: its stream of events, and what it answers to."""

import http.client
import json
import os
import signal
import subprocess
import threading
from contextlib import contextmanager

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments, refused, run, write_text

from npllm.pages.live import HOST, live_server
from npllm.runs.metrics import append_metrics, drop_metrics_after
from npllm.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return RunFolder(folder / "run")


@contextmanager
def serving(folder):
    """A server of the run that looks at its files often; a function that asks it."""
    with live_server(folder, seconds=0.01) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        def ask(path, host=HOST):
            connection = http.client.HTTPConnection(HOST, server.server_port, timeout=PATIENCE)
            connection.request("GET", path, headers={"Host": f"{host}:{server.server_port}"})
            return connection.getresponse()

        try:
            yield ask
        finally:
            server.shutdown()


def next_part(stream) -> str:
    """The next part of the page that a stream of events brings."""
    for line in stream:
        if line.startswith(b"data: "):
            return json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the stream has ended")


def test_the_page_shows_the_run_and_follows_it_through_a_rollback(folder):
    record = json.loads(folder.metrics.read_text().splitlines()[-1])
    with serving(folder) as ask:
        page = ask("/").read().decode()
        stream = ask("/events")
        assert stream.getheader("Content-Type") == "text/event-stream"
        first = next_part(stream)
        assert first in page  # the page has the part already, for a browser without JavaScript
        append_metrics(folder.metrics, record | {"step": 7, "loss": 123.0})
        assert "highest 123" in next_part(stream)
        drop_metrics_after(folder.metrics, 6)
        assert next_part(stream) == first
        again = ask("/events")  # a browser that was cut off comes back
        assert next_part(again) == first


def test_a_run_that_is_deleted_is_said_to_be_gone(tmp_path):
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "run")) == 0
    with serving(RunFolder(tmp_path / "run")) as ask:
        stream = ask("/events")
        next_part(stream)
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        assert "config.toml" in next_part(stream)


def test_only_this_machine_is_answered(folder):
    with serving(folder) as ask:
        assert ask("/", host="localhost").status == 200
        assert ask("/", host="evil.example").status == 403
        assert ask("/config.toml").status == 404
        assert ask("/../text.txt").status == 404


def test_the_page_may_connect_to_its_server_only(folder):
    with serving(folder) as ask:
        page = ask("/").read().decode()
    assert "connect-src 'self'" in page
    assert page.count("<script>") == 1


def test_ctrl_c_ends_the_server_with_130(folder):
    process = subprocess.Popen(
        [*NPLLM, "report", str(folder.path), "--serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
    )
    assert b"http://127.0.0.1:" in process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.decode() == "npllm: interrupted\n"


def test_one_run_is_served_and_no_file_is_written(folder, tmp_path, capsys):
    assert "--serve shows a single run" in refused(capsys, "report", folder.path, folder.path, "--serve", exit_code=2)
    out = tmp_path / "page.html"
    assert "without --out" in refused(capsys, "report", folder.path, "--serve", "--out", out, exit_code=2)
