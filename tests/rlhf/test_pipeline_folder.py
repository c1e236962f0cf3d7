"""The task that a pipeline belongs to, and two processes on one pipeline."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_runs import content, refused

from npllm.errors import ConfigError, DataError
from npllm.rlhf import report_card
from npllm.rlhf.pipeline_folder import hold_pipeline, record_of

TASK = """
from npllm.data.records import Demonstration
from npllm.rlhf.tasks import Task

class Nothing(Task):
    name = "nothing"
    def prompts(self): return ["a"]
    def demonstrations(self): return [Demonstration("a", "b")]
    def gold(self, response): return 0.0
"""


@pytest.fixture
def a_pipeline(tmp_path, monkeypatch):
    """Return the folder of a pipeline of the task a/t.py, whose first stage exists.

    The current folder also has another task in b/t.py.
    """
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.py").write_text(TASK + f"# {name}\n")
    with hold_pipeline(None, record_of("a/t.py")) as path:
        begin(path)
    return path


def begin(path):
    (path / "seed-0" / "pretrain").mkdir(parents=True)
    (path / "seed-0" / "pretrain" / "config.toml").touch()


def folder_of(name, out=None):
    with hold_pipeline(out, record_of(name)) as path:
        return path


def test_each_task_has_a_folder_of_its_own(a_pipeline):
    """So have two files of the same name, and a file named like an embedded task.

    The second time, each task finds its folder again.
    """
    Path("paths.py").write_text(TASK)
    expected = {"a/t.py": "rlhf-t", "b/t.py": "rlhf-t-2", "paths.py": "rlhf-paths", "paths": "rlhf-paths-2"}
    for _ in range(2):
        for name, folder in expected.items():
            path = folder_of(name)
            assert path == Path("runs") / folder
            if not (path / "seed-0").exists():
                begin(path)


@pytest.mark.usefixtures("library_parsed_once")
def test_another_task_is_refused(a_pipeline, capsys, monkeypatch):
    monkeypatch.setattr(report_card, "_run_and_report", lambda *_: pytest.fail("it went on"))
    before = content(a_pipeline)
    belongs = f"{a_pipeline} belongs to the task {Path('a/t.py').resolve()}; choose another --out."
    for task in ("b/t.py", "paths"):
        assert refused(capsys, "rlhf", "--task", task, "--out", a_pipeline, exit_code=2) == f"npllm: {belongs}"
    assert content(a_pipeline) == before
    begin(folder_of("paths", Path("mine")))
    message = refused(capsys, "rlhf", "--task", "code", "--out", "mine", exit_code=2)
    assert message == "npllm: mine belongs to the task paths; choose another --out."


def test_a_task_file_that_was_moved_is_the_same_task(a_pipeline):
    Path("a/t.py").rename("t.py")
    assert folder_of("t.py") == a_pipeline
    assert json.loads((a_pipeline / "task.json").read_text())["file"] == str(Path("t.py").resolve())


@pytest.mark.parametrize("out", [None, Path("runs/rlhf-t")])
def test_a_task_file_that_was_edited_is_said(a_pipeline, out):
    source = Path("a/t.py").read_text()
    Path("a/t.py").write_text(source.replace("0.0", "1.0"))
    with pytest.raises(ConfigError, match=f"t.py was edited since {a_pipeline} was started with it; .* undo the edit"):
        folder_of("a/t.py", out)
    Path("a/t.py").write_text(source)
    assert folder_of("a/t.py", out) == a_pipeline
    Path("a/t.py").write_text(source.replace("0.0", "1.0"))
    (a_pipeline / "task.json").unlink()  # as the message says
    assert folder_of("a/t.py", out) == a_pipeline


def test_an_edit_before_the_first_stage_is_none(tmp_path):
    """A task that failed because of its file can start again in the same folder."""
    file = tmp_path / "t.py"
    file.write_text(TASK)
    folder_of(file, tmp_path / "out")
    file.write_text(TASK + "# mended\n")
    assert folder_of(file, tmp_path / "out") == tmp_path / "out"


def test_a_second_process_on_the_same_pipeline_is_refused(a_pipeline, capsys, monkeypatch):
    monkeypatch.setattr(report_card, "_run_and_report", lambda *_: pytest.fail("it went on"))
    with hold_pipeline(None, record_of("a/t.py")):
        for out in ([], ["--out", a_pipeline]):
            message = refused(capsys, "rlhf", "--task", "a/t.py", *out, exit_code=2)
            assert message.startswith(f"npllm: {a_pipeline} is in use by another process")


def test_two_tasks_that_begin_at_once_get_two_folders(a_pipeline):
    """Neither has a stage yet, and their names are the same."""
    Path("runs/rlhf-t").rename("runs/elsewhere")
    with ExitStack() as both:
        paths = [both.enter_context(hold_pipeline(None, record_of(name))) for name in ("a/t.py", "b/t.py")]
    assert paths == [Path("runs/rlhf-t"), Path("runs/rlhf-t-2")]


def test_what_is_no_pipeline_is_refused(tmp_path):
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="holds a run and no pipeline"):
        folder_of("paths", tmp_path)
    assert list(content(tmp_path)) == ["config.toml"]
    with pytest.raises(ConfigError, match="cannot be made"):
        folder_of("paths", tmp_path / "config.toml" / "pipeline")


def test_what_a_killed_process_left_of_its_writing_is_gone(a_pipeline):
    left = [a_pipeline / ".summary.json.1.tmp", a_pipeline / "seed-0" / ".preferences.jsonl.1.tmp"]
    for file in left:
        file.touch()
    folder_of("a/t.py")
    assert not any(file.exists() for file in left)


def test_a_damaged_record_is_named(a_pipeline):
    (a_pipeline / "task.json").write_text("{}")
    with pytest.raises(DataError, match="task.json is damaged"):
        folder_of("a/t.py")
