"""The end of a pretraining run compares it with the run before it on the same text."""

import json
import os
import shutil

import pytest
from small_runs import pretrain_arguments, run, summary, write_text

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def comparisons(capsys, *words) -> list[str]:
    """The lines of a run that compare it with another one."""
    capsys.readouterr()
    assert run(*words) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "the run before this one" in line]


def with_bits(run_folder, bits) -> None:
    """Set the result of a run."""
    (run_folder / "summary.json").write_text(json.dumps(summary(run_folder) | {"val_bits_per_byte": bits}))


def test_the_newest_run_before_it_on_the_same_text_is_named(tmp_path, text, capsys):
    """Whatever its vocabulary; a run on other text is not compared with."""
    runs, other = tmp_path / "runs", tmp_path / "other"
    other.mkdir()
    assert comparisons(capsys, *pretrain_arguments(text, runs / "first")) == []
    changes = {"data__tokenizer": "byte", "train__steps": 2}
    [line] = comparisons(capsys, *pretrain_arguments(text, runs / "second", **changes))
    first, second = (round(summary(runs / name)["val_bits_per_byte"], 3) for name in ("first", "second"))
    assert second > first
    expected = f"{runs / 'first'}, the run before this one, had {first:.3f} bits per byte; this one has "
    assert line == f"{expected}{second - first:.3f} more."
    assert comparisons(capsys, *pretrain_arguments(write_text(other, seed=1), runs / "elsewhere")) == []
    assert comparisons(capsys, *pretrain_arguments(text, runs / "fraction", data__val_fraction=0.3)) == []
    [line] = comparisons(capsys, *pretrain_arguments(text, runs / "third"))
    assert line.startswith(f"{runs / 'second'}, the run before this one,")
    assert line.endswith(f"this one has {second - first:.3f} less.")


def test_a_run_that_is_shown_again_is_compared_with_an_older_one(tmp_path, text, capsys):
    for name in ("first", "second", "third"):
        assert run(*pretrain_arguments(text, tmp_path / "runs" / name, train__steps=2)) == 0
    assert comparisons(capsys, "resume", tmp_path / "runs" / "first") == []
    with_bits(tmp_path / "runs" / "first", summary(tmp_path / "runs" / "second")["val_bits_per_byte"])
    [line] = comparisons(capsys, "resume", tmp_path / "runs" / "second")
    assert line.startswith(f"{tmp_path / 'runs' / 'first'}, ")
    assert line.endswith("this one has as many.")


def damage(file, how):
    def apply(neighbour):
        path = neighbour / file
        if how == "folder":
            path.unlink()
            path.mkdir()
        elif how is None:
            path.unlink()
        else:
            path.write_bytes(how)

    return apply


DAMAGES = {
    f"{file} {how}": damage(file, how)
    for file in ("summary.json", "config.toml", "data/val.h5")
    for how in (None, b"{\xff", "folder")
} | {
    "an empty summary": damage("summary.json", b""),
    "an empty shard": damage("data/val.h5", b""),
    "another summary": damage("summary.json", b"{}"),
    "a result that is no number": lambda neighbour: with_bits(neighbour, "low"),
    "another stage": damage("config.toml", b'[run]\nstage = "sft"\n'),
    "no folder": lambda neighbour: (shutil.rmtree(neighbour), neighbour.write_text("")),
    "a link to nowhere": lambda neighbour: (shutil.rmtree(neighbour), neighbour.symlink_to("nowhere")),
    "a link to itself": lambda neighbour: (shutil.rmtree(neighbour), neighbour.symlink_to(neighbour)),
}


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory):
    """Three runs on one text, oldest first: good, broken, last."""
    folder = tmp_path_factory.mktemp("three")
    for name in ("good", "broken", "last"):
        assert run(*pretrain_arguments(write_text(folder), folder / "runs" / name, train__steps=2)) == 0
    return folder / "runs"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_neighbour_is_passed_over(three_runs, tmp_path, capsys, name):
    runs = shutil.copytree(three_runs, tmp_path / "runs")  # with the times of the files
    DAMAGES[name](runs / "broken")
    val = runs / "broken" / "data" / "val.h5"
    if val.is_file():  # a damaged shard is as old as the whole one was
        age = (three_runs / "broken" / "data" / "val.h5").stat().st_mtime_ns
        os.utime(val, ns=(age, age))
    [line] = comparisons(capsys, "resume", runs / "last")
    assert line.startswith(f"{runs / 'good'}, the run before this one,")


def test_the_current_folder_has_neighbours_too(three_runs, tmp_path, monkeypatch, capsys):
    runs = shutil.copytree(three_runs, tmp_path / "runs")
    monkeypatch.chdir(runs / "last")
    [line] = comparisons(capsys, "resume", ".")
    assert line.startswith(f"{runs / 'broken'}, ")
