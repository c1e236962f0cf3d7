"""The report, the comparison and the live page in a real browser."""

from threading import Thread

import pytest
from browser import DESKTOP, PHONE, assert_opens_soundly, serious_violations, visit
from small_runs import run
from stage_runs import DEMONSTRATIONS, pretrained, stage_arguments, write_jsonl

from npllm.pages.live import live_server
from npllm.runs.metrics import append_metrics, read_metrics
from npllm.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def pages(chromium, tmp_path_factory):  # without a browser there is no need to make them
    """Name of a page -> its file."""
    folder = tmp_path_factory.mktemp("pages")
    base = pretrained(folder)
    data = write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS)
    assert run(*stage_arguments("sft", base, folder / "sft", data=data)) == 0
    runs = {"pretrained": [base], "sft": [folder / "sft"], "both": [base, folder / "sft"]}
    for name, paths in runs.items():
        assert run("report", *paths, "--out", folder / f"{name}.html") == 0
    return {name: folder / f"{name}.html" for name in runs}


@pytest.mark.parametrize("name", ["pretrained", "sft", "both"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_opens_without_errors_and_connects_to_nothing(chromium, pages, name, width):
    assert_opens_soundly(chromium, pages[name], width)


@pytest.mark.parametrize("name", ["pretrained", "sft", "both"])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(chromium, pages, name, dark):
    with visit(chromium, pages[name], width=PHONE, dark=dark) as seen:
        assert serious_violations(seen.page) == []


def test_the_report_is_readable_without_javascript(chromium, pages):
    with visit(chromium, pages["pretrained"], javascript=False) as seen:
        page = seen.page
        assert page.locator(".charts svg.picture").count() == page.locator(".charts figure").count() >= 5
        assert page.locator("svg.map text").count() > 20
        assert "There is no head of the kind" in page.inner_text("#learnt")
        assert page.locator("#learnt details").count() == 3  # neurons
        page.locator("#learnt details summary").first.click()
        assert page.locator("#learnt details mark").first.is_visible()


def test_the_live_page_follows_a_run_and_connects_to_its_server_only(chromium, tmp_path):
    folder = RunFolder(pretrained(tmp_path))
    with live_server(folder, seconds=0.01) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        with visit(chromium, address) as seen:
            seen.page.get_by_text("Connected: the page follows the run.").wait_for()
            append_metrics(folder.metrics, read_metrics(folder.metrics)[-1] | {"step": 5, "loss": 123.0})
            seen.page.locator('svg[aria-label*="highest 123"]').first.wait_for()
            assert seen.errors == []
            assert {request.removeprefix(address) for request in seen.requests} == {"", "events"}
        server.shutdown()
