"""The report of a run with hostile content is harmless, small, and there."""

import json
import re
import shutil

import pytest
from small_runs import pretrain_arguments, run, write_text
from stage_runs import pretrained

from npllm.runs.checkpoint import checkpoint_files

MOST_BYTES = 5 << 20
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of a finished run, to damage."""
    return shutil.copytree(whole, tmp_path / "run")


def page_of(path, tmp_path) -> str:
    out = tmp_path / "page.html"
    assert run("report", path, "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_BYTES
    # The one script is the template's own; nothing of the run is markup.
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img src=x" not in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    return page


def test_texts_of_a_run_are_never_markup(tmp_path, broken):
    ledger = {"event": "refused", "time": SCRIPT, "checkpoint": SCRIPT, "reason": SCRIPT}
    (broken / "ledger.jsonl").write_text(json.dumps(ledger) + "\n")
    (broken / "samples.txt").write_text(SCRIPT)
    (broken / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": SCRIPT, "text": SCRIPT}) + "\n")
    summary = json.loads((broken / "summary.json").read_text())
    (broken / "summary.json").write_text(json.dumps(summary | {SCRIPT: SCRIPT, "by_confidence": [{SCRIPT: SCRIPT}]}))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "tokens": 9, "loss": 1.0, SCRIPT: 2.0}) + "\n")
    config = (broken / "config.toml").read_text()
    (broken / "config.toml").write_text(config + f"remark = {json.dumps(SCRIPT)}\n")
    page = page_of(broken, tmp_path)
    assert page.count("&lt;script&gt;alert(1)") >= 8


def test_a_text_of_markup_is_trained_on_and_shown(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<b>&amp;\"'</b> <script>x</script>\n" * 60)
    assert run(*pretrain_arguments(text, tmp_path / "run")) == 0
    assert "&lt;" in page_of(tmp_path / "run", tmp_path)


def test_numbers_that_are_not_finite_or_enormous_are_gaps(tmp_path, broken):
    records = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    records[1]["loss"] = None
    records[2] |= {"loss": 1e308, "grad_norm": -1e308, "lr": 1e17}
    records[3] |= {"step": 2**52, "loss": 1.0, "grad_norm": 10**400}
    (broken / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "<figcaption>Loss" in page_of(broken, tmp_path)


@pytest.mark.parametrize("n", [20_000, pytest.param(10**6, marks=pytest.mark.long)])
def test_a_long_log_makes_a_small_page(tmp_path, broken, n):
    lines = (f'{{"step": {step}, "tokens": {step}, "loss": {step % 97}.5, "grad_norm": 1.0}}\n' for step in range(1, n))
    with (broken / "metrics.jsonl").open("w") as file:
        file.writelines(lines)
    assert len(page_of(broken, tmp_path)) < 1 << 20


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "los', b"\xff\xfe\n" * 9, b"nonsense\n"])
def test_a_damaged_log_is_said_to_be_damaged(tmp_path, broken, content):
    (broken / "metrics.jsonl").write_bytes(content)
    page = page_of(broken, tmp_path)
    assert ("lines of metrics.jsonl are not records" in page) == (b"\n" in content)


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "summary.json", "samples.txt", "samples.jsonl", "tokenizer.json", "data/val.h5", "data/train.h5"],
)
def test_a_missing_or_damaged_file_leaves_the_other_parts(tmp_path, broken, name):
    for damage in (lambda path: path.write_bytes(b"{\0"), lambda path: path.unlink()):
        damage(broken / name)
        page = page_of(broken, tmp_path)
        assert "Settings and machine" in page
        assert str(broken) not in page  # the page is the same wherever the run lies


def test_weights_that_are_not_finite_are_not_measured(tmp_path, broken):
    for checkpoint in checkpoint_files(broken / "checkpoints"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    page = page_of(broken, tmp_path)
    assert "Not shown:" in page
    assert 'id="learnt"' not in page


def test_a_run_without_any_update_has_a_page(tmp_path, broken):
    for path in [*checkpoint_files(broken / "checkpoints"), broken / "metrics.jsonl", broken / "summary.json"]:
        path.unlink()
    assert "Not finished: 0 updates" in page_of(broken, tmp_path)


def test_a_text_of_words_only_is_measured(tmp_path):
    """No bracket and no line with another indentation: the page says so."""
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "run")) == 0
    page = page_of(tmp_path / "run", tmp_path)
    assert "No score for “matching bracket”" in page
    assert "No probe for “indentation of the line”" in page
