"""npllm runs: whole, unfinished and broken runs, each in a row of its own."""

import os
import re
import shutil

import pytest
from small_runs import pretrain_arguments, refused, run, write_text

from npllm.output import Output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, one that has lost its summary, one that has lost all, and files
    that are no runs."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(["whole", "pipeline/part", "broken"]):
        made = folder / name
        assert run(*pretrain_arguments(write_text(folder), made, data__tokenizer="byte", train__steps=2)) == 0
        os.utime(made / "config.toml", (1e9 + number, 1e9 + number))
    (folder / "pipeline" / "part" / "summary.json").unlink()
    checkpoints = folder / "pipeline" / "part" / "checkpoints"
    shutil.copyfile(checkpoints / "step-00000002.h5", checkpoints / "step-copy.h5")
    (folder / "broken" / "config.toml").write_text("[data\n")
    os.utime(folder / "broken" / "config.toml", (2e9, 2e9))
    (folder / ".draft").mkdir()
    (folder / ".draft" / "config.toml").touch()
    (folder / "notes").mkdir()
    return folder


def test_every_run_is_a_line_for_other_programs(folder, capsys):
    capsys.readouterr()
    assert run("runs", folder) == 0
    header, *rows = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == ["run", "stage", "size", "data", "result", "date"]
    whole, part, broken = rows
    assert (whole[0], whole[1], whole[3]) == ("whole", "pretrain", "text.txt")
    assert re.fullmatch(r"[\d.]+ k", whole[2])
    assert whole[4].endswith(" bits/byte")
    assert whole[5].startswith("2001-09-")
    assert (part[0], part[4]) == ("pipeline/part", "step 2 of 2")
    assert broken[0] == "broken"
    assert broken[4].startswith("broken: config.toml is not valid TOML")


def test_a_table_fits_80_columns(folder, capsys, monkeypatch):
    """A whole run takes one line; the reason of a broken one is folded, not cut."""
    monkeypatch.setattr(Output, "isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    capsys.readouterr()
    assert run("runs", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[:4]] == ["run", "whole", "pipeline/part", "broken"]
    assert re.search(r"bits/byte +2001-09-\d\d \d\d:\d\d", lines[1])


def test_a_folder_that_is_not_there(tmp_path, capsys):
    message = refused(capsys, "runs", tmp_path / "none", exit_code=3)
    assert message == f"npllm: {tmp_path / 'none'} is not a folder; name one that holds runs, or make a run first."
