"""A page is one file that connects to nothing, and no text can act in it."""

import base64
import hashlib
import re

import pytest

from npllm.cli import main
from npllm.pages import page
from npllm.pages.page import render, write_page

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(1)">'


@pytest.fixture
def templates(tmp_path, monkeypatch):
    """A folder of templates with one page, `small.html`, and a file of styles."""
    for name in ("base.html", "style.css", "script.js"):
        (tmp_path / name).write_text((page.TEMPLATES / name).read_text(encoding="utf-8"), encoding="utf-8")
    small = '{% extends "base.html" %}{% block title %}Small{% endblock %}{% block main %}{{ text }}{% endblock %}'
    (tmp_path / "small.html").write_text(small, encoding="utf-8")
    (tmp_path / "small.js").write_text("document.title = 'own script';", encoding="utf-8")
    monkeypatch.setattr(page, "TEMPLATES", tmp_path)
    page._environment.cache_clear()
    yield tmp_path
    page._environment.cache_clear()


@pytest.mark.usefixtures("templates")
def test_text_is_escaped_and_only_the_pages_own_script_may_run():
    html = render("small.html", text=HOSTILE, contents=[("x", HOSTILE)])
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;alert(1)") == 2
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "own script" in script
    assert re.findall(r"(?:src|href)=\"?https?:", html) == []


@pytest.mark.usefixtures("templates")
def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(Exception, match="'text' is undefined"):
        render("small.html", contents=[])


@pytest.mark.usefixtures("templates")
def test_a_script_in_a_text_would_not_run_even_unescaped(chromium, tmp_path):
    """The policy of the page stops it, so a missing escape does no damage."""
    from browser import visit
    from markupsafe import Markup

    write_page(
        tmp_path / "small.html", render("small.html", text=Markup("<script>document.title='bad'</script>"), contents=[])
    )
    with visit(chromium, tmp_path / "small.html") as seen:
        assert seen.page.title() == "own script"
        assert any("Content Security Policy" in error for error in seen.errors)
        assert seen.requests == []


def test_without_the_packages_a_verb_ends_in_one_sentence(monkeypatch, capsys, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("npllm.pages.packages.import_module", missing)
    assert main(["book", "--out", str(tmp_path / "book.html")]) == 2
    assert capsys.readouterr().err == (
        "npllm: The HTML pages need the package jinja2; install it (pip install 'npllm[report]').\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [["book"], ["microscope", "classic"], ["report", "run"]])
def test_a_place_that_cannot_be_written_is_said_before_the_work(monkeypatch, capsys, tmp_path, verb):
    """Catches a check that comes after the work, which here fails the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    for work in ("book.book_page", "microscope.subject_of", "run_report.report_html"):
        monkeypatch.setattr(f"npllm.pages.{work}", None)
    for out, reason in (("missing/page.html", "No such file or directory"), ("run", "Is a directory")):
        assert main([*verb, "--out", out]) == 5
        assert f"npllm: {out} cannot be written ({reason})" in capsys.readouterr().err
