"""Many requests at once: each gets the answer that it gets alone, and its turn."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from serve.serving import announced, braked, serving
from small_runs import PATIENCE

from npllm.serve.app import Limits

N_CLIENTS = 32
LONG = {"prompt": "the cat", "max_tokens": 50, "seed": 1, "temperature": 2.0}


@pytest.fixture(scope="module")
def server(base):
    with serving(base) as started:
        yield started


def test_32_clients_get_what_each_gets_alone(server):
    """To the bit: log-probabilities come with all their digits."""
    words = ["the cat", "a", "on the roof and", "purred under a mat"]
    requests = [
        {"prompt": words[i % 4], "max_tokens": 1 + 5 * (i % 9), "seed": i, "logprobs": 3, "top_p": 0.95}
        for i in range(N_CLIENTS)
    ]

    def choices(request):
        return server.complete(**request)["choices"]

    alone = [choices(request) for request in requests]
    with ThreadPoolExecutor(N_CLIENTS) as pool, braked(server) as brake:
        together = [pool.submit(choices, request) for request in requests]
        assert brake.held.wait(PATIENCE)
        brake.released.set()
        assert [each.result() for each in together] == alone
    assert max(brake.sizes) == 4  # they did share passes


def test_a_text_joins_the_others_at_the_next_token(server, monkeypatch):
    with ThreadPoolExecutor(2) as pool, braked(server, at=3) as brake:
        first = pool.submit(server.complete, **LONG)
        assert brake.held.wait(PATIENCE)
        arrived = announced(monkeypatch, server.scheduler, "submit")
        second = pool.submit(server.complete, **LONG | {"prompt": "a dog", "max_tokens": 3})
        assert arrived.wait(PATIENCE)
        brake.released.set()
        assert len(second.result()["choices"][0]["text"]) == 3
        assert len(first.result()["choices"][0]["text"]) == 50
    # The fourth pass is that of the first text while the prompt of the second is read.
    assert brake.sizes == [1, 1, 1, 1, 2, 2] + [1] * 43


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_text(server, monkeypatch, stream):
    cancelled = announced(monkeypatch, server.scheduler, "cancel")
    with braked(server, at=2) as brake:
        connection = server.post("/v1/completions", LONG | {"stream": stream})
        assert brake.held.wait(PATIENCE)
        if stream:
            response = connection.getresponse()
            assert response.readline().startswith(b"data: ")
            response.close()
        connection.close()
        assert cancelled.wait(PATIENCE)
        brake.released.set()
    assert server.scheduler.count() == 0
    assert len(brake.sizes) == 2  # 48 tokens were not written


def test_a_full_server_says_when_to_come_again(base):
    """One text is written, one waits, and the third is refused."""
    with serving(base, limits=Limits(active=1, waiting=1)) as server:
        assert server.refusal("/v1/completions", LONG | {"n": 2}, 400)["param"] == "n"
        with ThreadPoolExecutor(2) as pool, braked(server) as brake, pytest.MonkeyPatch.context() as patch:
            first = pool.submit(server.complete, **LONG)
            assert brake.held.wait(PATIENCE)
            waits = announced(patch, server.scheduler, "submit")
            second = pool.submit(server.complete, **LONG)
            assert waits.wait(PATIENCE)
            response = server.post("/v1/completions", LONG).getresponse()
            assert (response.status, response.getheader("Retry-After")) == (429, "1")
            brake.released.set()
            assert first.result()["choices"] == second.result()["choices"]
        assert server.complete(**LONG)


def test_a_text_that_fails_ends_alone(base, monkeypatch, caplog):
    """The request gets 500, and the server goes on."""
    with serving(base) as server:
        model = server.source.current().model
        monkeypatch.setattr(model, "extend", lambda tokens, cache: 1 / 0)
        assert "its log says why" in server.refusal("/v1/completions", LONG, 500)["message"]
        monkeypatch.setattr(model, "extend", out_of_memory)
        assert "not enough memory" in server.refusal("/v1/completions", LONG, 500)["message"]
        monkeypatch.undo()
        assert server.complete(**LONG)
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def out_of_memory(tokens, cache):
    raise MemoryError


def test_the_end_of_the_server_ends_its_texts(base):
    with serving(base) as server, ThreadPoolExecutor(1) as pool, braked(server, at=2) as brake:
        text = pool.submit(server.ask, "/v1/completions", LONG)
        assert brake.held.wait(PATIENCE)
        server.scheduler.stop()
        brake.released.set()
        assert text.result()[0] == 503
        assert server.ask("/v1/completions", LONG)[0] == 503
