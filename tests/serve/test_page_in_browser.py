"""The page of the server in a real Chromium."""

import json

import pytest
from pages.browser import DESKTOP, PHONE, serious_violations, sideways, visit
from serve.serving import HOST, announced, braked, serving
from small_runs import PATIENCE

HOSTILE = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
COMPLETE = "The answer is complete.|The answer ends here because it has the most tokens that were asked for."


@pytest.fixture(scope="module")
def talking(talker):
    with serving(talker) as server:
        yield server


@pytest.fixture(scope="module")
def base_server(base):
    with serving(base) as server:
        yield server


def address(server) -> str:
    return f"http://{HOST}:{server.port}/"


def ask(page, text: str) -> None:
    """Type a text and wait for the end of the answer."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_function(f"() => /{COMPLETE}/.test(document.getElementById('state').textContent)")


@pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_a_conversation_and_its_probabilities(chromium, talking, width, dark):  # noqa: F811
    with visit(chromium, address(talking), width=width, dark=dark) as seen:
        page = seen.page
        page.click("summary")
        page.fill("#seed", "3")
        page.fill("#temperature", "2")
        for question in ("the cat", "a dog"):
            ask(page, question)
        turns = page.locator(".text").all_text_contents()
        assert (len(turns), turns[0], turns[2]) == (4, "the cat", "a dog")
        request = {"seed": 3, "temperature": 2.0, "top_p": 0.95, "max_tokens": 32}
        first = [{"role": "user", "content": "the cat"}]
        _, answer = talking.ask("/v1/chat/completions", request | {"messages": first})
        assert answer["choices"][0]["message"]["content"] == turns[1]
        both = [*first, {"role": "assistant", "content": turns[1]}, {"role": "user", "content": "a dog"}]
        _, answer = talking.ask("/v1/chat/completions", request | {"messages": both})
        assert answer["choices"][0]["message"]["content"] == turns[3]

        page.locator(".word").first.click()
        assert page.locator("#alternatives tr").count() in (8, 9)
        assert "with a probability of" in page.locator("#alternatives caption").text_content()
        assert page.locator("#alternatives .taken").count() == 1
        assert serious_violations(page) == []
        assert sideways(page) == 0
        assert page.locator("main").bounding_box()["width"] > width / 2
        assert page.locator(".turn:nth-child(2) + #token").count() == 1  # below the answer of the word
        page.click("#clear")
        assert page.locator(".turn").count() == 0
        assert seen.errors == []
        assert all(url.startswith(address(talking)) for url in seen.requests)


def test_a_base_model_continues_a_text_by_keyboard_alone(chromium, base_server):  # noqa: F811
    with visit(chromium, address(base_server)) as seen:
        page = seen.page
        assert "has not learnt the form of conversations" in page.text_content("main")
        ask(page, "the cat")
        written = page.locator(".written")
        written.focus()
        shown = []
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
            shown.append(page.locator(".chosen").text_content())
        text = written.text_content()
        assert shown == [text[0], text[1], text[2], text[1]]
        page.locator(".word").nth(4).hover()
        assert page.locator(".chosen").text_content() == text[4]
        assert seen.errors == []


def test_hostile_text_is_inert(chromium, talking):  # noqa: F811
    """In what the user types, in what the model writes, in its tokens and in errors."""
    score = {"token": HOSTILE, "logprob": -0.5, "bytes": [], "top_logprobs": [{"token": HOSTILE, "logprob": -0.5}]}
    choice = {"index": 0, "delta": {"content": HOSTILE}, "logprobs": {"content": [score]}, "finish_reason": "stop"}
    stream = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    with visit(chromium, address(talking)) as seen:
        page = seen.page
        page.route("**/v1/**", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
        ask(page, HOSTILE)
        page.locator(".word").first.click()
        assert page.locator(".text").all_text_contents() == [HOSTILE, HOSTILE]
        assert HOSTILE.replace(" ", "␣") in page.text_content("#alternatives")
        page.unroute("**/v1/**")
        error = {"error": {"message": HOSTILE}}
        page.route("**/v1/**", lambda route: route.fulfill(status=400, json=error))
        page.fill("#prompt", "the cat")
        page.click("#send")
        page.wait_for_function("() => document.getElementById('state').textContent.includes('hacked')")
        assert page.locator("#talk img, #talk script").count() == 0
        assert page.title() == "talker"
        assert [message for message in seen.errors if "400" not in message] == []


def test_escape_stops_the_model(chromium, base_server, monkeypatch):  # noqa: F811
    cancelled = announced(monkeypatch, base_server.scheduler, "cancel")
    with visit(chromium, address(base_server)) as seen, braked(base_server, at=2) as brake:
        seen.page.fill("#prompt", "the cat")
        seen.page.click("#send")
        assert brake.held.wait(PATIENCE)
        seen.page.wait_for_selector(".word")
        seen.page.keyboard.press("Escape")
        assert cancelled.wait(PATIENCE)
        seen.page.wait_for_function("() => document.getElementById('state').textContent === 'Stopped.'")
        assert seen.page.is_enabled("#send")


def test_the_page_asks_for_the_key(chromium, base):  # noqa: F811
    with serving(base, key="k" * 16) as server, visit(chromium, address(server)) as seen:
        page = seen.page
        page.fill("#prompt", "the cat")
        page.press("#prompt", "Enter")
        page.wait_for_function("() => document.getElementById('state').textContent.includes('API key is missing')")
        page.click("summary")
        page.fill("#key", "k" * 16)
        ask(page, "the cat")
        assert page.locator(".word").count() > 0


def test_without_javascript_the_page_says_what_needs_it(chromium, base_server):  # noqa: F811
    with visit(chromium, address(base_server), javascript=False) as seen:
        assert "needs JavaScript" in seen.page.text_content("main")
        assert f"curl {address(base_server)}v1/completions" in seen.page.text_content("pre")
        assert not seen.page.is_visible("#ask")


def test_the_page_has_a_strict_policy(base_server):
    connection = base_server.connection()
    connection.request("GET", "/")
    response = connection.getresponse()
    html = response.read().decode()
    assert "default-src 'none'" in html
    assert "connect-src 'self'" in html
    assert "script-src 'sha256-" in html
    assert response.getheader("Content-Security-Policy") == "frame-ancestors 'none'"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
