"""What the server does not put up with: strangers, and requests too large or slow."""

import json
import socket
from contextlib import suppress

import pytest
from serve.serving import HOST, serving
from small_runs import PATIENCE

from npllm.serve.app import Limits

KEY = "correct-horse-battery"
TEXT = {"prompt": "the cat", "max_tokens": 2}
HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(base):
    with serving(base, limits=Limits(body_bytes=1000, body_seconds=0.5)) as started:
        yield started


@pytest.fixture(scope="module")
def locked(base):
    with serving(base, key=KEY) as started:
        yield started


def answer_to(server, raw: bytes) -> bytes:
    """What the server sends until it closes a connection on which it gets `raw`."""
    with socket.create_connection((HOST, server.port), timeout=PATIENCE) as connection:
        connection.sendall(raw)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    return received


def status_of(raw: bytes) -> int:
    return int(raw.split()[1])


@pytest.mark.parametrize("n_bytes", [1001, 31_000])
def test_a_body_that_is_too_large_is_refused(server, n_bytes):
    error = server.refusal("/v1/completions", json.dumps(TEXT).encode().ljust(n_bytes), 413)
    assert error["code"] == "body_too_large"
    assert server.ask("/v1/completions", json.dumps(TEXT).encode().ljust(1000))[0] == 200


def test_a_body_without_an_end_is_cut_off(server):
    """In chunks, so that no header says how long it will be."""
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    raw = answer_to(server, (HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode() + 40 * chunk)
    assert status_of(raw) == 413


def test_a_slow_body_is_not_waited_for(server):
    raw = answer_to(server, (HEAD + "Content-Length: 100\r\n\r\n{").encode())
    assert status_of(raw) == 408
    assert b"body_too_slow" in raw


@pytest.mark.parametrize("raw", [b"", HEAD.encode()], ids=["nothing", "half a head"])
def test_a_connection_that_brings_no_request_is_closed(server, raw):
    assert answer_to(server, raw) == b""


def test_a_long_head_is_cut_off(server):
    """The client reads 400, or that its connection was cut while it sent."""
    with suppress(ConnectionError):
        assert status_of(answer_to(server, HEAD.encode() + b"X: " + b"x" * (1 << 18))) == 400
    assert server.complete(**TEXT)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        (f"Bearer {KEY}x", 401),
        (KEY, 401),
        (f"Basic {KEY}", 401),
        ("Bearer é", 401),
        (f"Bearer {KEY}", 200),
    ],
)
def test_the_key_opens_the_server(locked, authorization, status):
    headers = {} if authorization is None else {"Authorization": authorization}
    assert locked.ask("/v1/completions", TEXT, **headers)[0] == status
    assert locked.ask("/v1/models", **headers)[0] == status


def test_without_the_key_nothing_is_known_but_the_page(locked):
    connection = locked.connection()
    connection.request("GET", "/v1/nothing/there")
    response = connection.getresponse()
    assert (response.status, response.getheader("WWW-Authenticate")) == (401, "Bearer")
    assert json.loads(response.read())["error"]["code"] == "invalid_api_key"
    connection = locked.connection()
    connection.request("GET", "/")
    assert connection.getresponse().status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", ""])
def test_another_name_of_this_machine_is_refused(server, host):
    assert server.ask("/v1/models", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "LOCALHOST:80", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(server, host):
    assert server.ask("/v1/models", Host=host)[0] == 200


def test_a_page_of_another_origin_is_refused(server):
    own = f"http://{HOST}:{server.port}"
    for origin in ("https://evil.example", "null", f"http://{HOST}:1"):
        assert server.ask("/v1/completions", TEXT, Origin=origin)[0] == 403
    assert server.ask("/v1/completions", TEXT, Origin=own)[0] == 200
    assert server.ask("/v1/completions", TEXT, Content_Type="text/plain")[0] == 415


def test_there_is_nothing_else(server):
    assert "There is nothing at /config.toml" in server.refusal("/config.toml", TEXT, 404)["message"]
    assert "use another method" in server.refusal("/v1/models", TEXT, 405)["message"]
    connection = server.connection()
    connection.request("OPTIONS", "/v1/completions", headers={"Origin": f"http://{HOST}:{server.port}"})
    assert connection.getresponse().getheader("Access-Control-Allow-Origin") is None


def test_the_log_has_one_line_for_each_request(base):
    with serving(base) as server:
        server.complete(**TEXT)
        server.ask("/v1/models")
        server.ask("/" + "x" * 200)
    first, second, third = server.log
    assert first.startswith("POST /v1/completions 200 7+2 tokens ")
    assert second.startswith("GET /v1/models 200 ")
    assert third.startswith("GET /" + "x" * 79 + " 404 ")
