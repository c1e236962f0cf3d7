"""A task in a file of the user's that cannot be used: one sentence with the line."""

import numpy as np
import pytest
from small_runs import refused

from npllm.errors import DataError
from npllm.rlhf.judging import gold_of
from npllm.rlhf.tasks import load_task
from npllm.tokenizer import byte_tokenizer

TASK = """from npllm.data.records import Demonstration
from npllm.rlhf.tasks import Task
class Short(Task):
    name = "short"
    def prompts(self): return ["a", "b"]
    def demonstrations(self): return [Demonstration("a", "b")]
    def gold(self, response): return 1 / len(response.text)
"""

# name: (what is replaced, by what, what the message says)
BAD = {
    "syntax": ("class Short(Task):", "class Short(Task:", ", line 3: SyntaxError: "),
    "import": (
        "from npllm.rlhf.tasks",
        "from npllm.tasks",
        ", line 2: ModuleNotFoundError: No module named",
    ),
    "zero byte": ("Short", "\0", ": SyntaxError: source code string cannot contain null bytes"),
    "exit": ("class", "raise SystemExit(0)\nclass", ", line 3: SystemExit: 0"),
    "no name": ('name = "short"', "pass", "name of Short gives None"),
    "no gold": ("def gold", "def silver", "TypeError: Can't instantiate abstract class Short"),
    "a prompt that is no text": ('"b"]', "7]", "prompts() of Short gives 7"),
    "a demonstration that is none": ("[Demonstration(", "[dict(prompt=", "SyntaxError"),
    "demonstrations that are none": ('[Demonstration("a", "b")]', "None", "TypeError: 'NoneType'"),
    "gold fails": ("1 / len", "1 / 0 * len", ", line 7, in gold: ZeroDivisionError: division by zero"),
    "gold is not finite": ("1 / len(response.text)", "float('nan')", "gold() of Short gives nan"),
    "no prompts": ('["a", "b"]', "[]", "prompts() of Short gives nothing"),
    "a recipe that is none": ('name = "short"', 'name = "short"; recipe = {}', "recipe of Short gives {}"),
    "gold is no number": ("1 / len(response.text)", "None", "gold() of Short gives None"),
}


@pytest.mark.parametrize(("old", "new", "complaint"), BAD.values(), ids=BAD)
def test_a_task_that_cannot_be_used(tmp_path, capsys, monkeypatch, old, new, complaint):
    """Before anything is trained, and whether the path is relative or not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK.replace(old, new))
    for name in ("task.py", tmp_path / "task.py"):
        message = refused(capsys, "rlhf", "--task", name, "--out", "out", exit_code=3)
        assert message.startswith(f"npllm: {name}")
        assert complaint in message
        assert message.endswith("; correct the task.")
    assert not (tmp_path / "out").exists()


LATE = {
    "1 / 0": "task.py, line 8, in gold: ZeroDivisionError: division by zero; correct the task.",
    "float('inf')": "task.py: TypeError: gold() of Short gives inf; correct the task.",
    "'good'": "task.py: TypeError: gold() of Short gives 'good'; correct the task.",
    "exit(3)": "task.py, line 8, in gold: SystemExit: 3; correct the task.",
}


@pytest.mark.parametrize("value", LATE)
def test_a_gold_reward_that_fails_late(tmp_path, value):
    """While the responses of a policy are judged: no traceback after hours of
    training."""
    body = f"1.0 if response.text == 'b' else (\n        {value})"
    (tmp_path / "task.py").write_text(TASK.replace("1 / len(response.text)", body))
    task = load_task(str(tmp_path / "task.py"))
    tokenizer = byte_tokenizer()
    gold = gold_of(task, task.prompts(), tokenizer)
    assert gold([0], np.array([tokenizer.encode("b")]), [True]) == 1.0
    with pytest.raises(DataError) as caught:
        gold([0], np.array([tokenizer.encode("c")]), [True])
    assert str(caught.value) == f"{tmp_path}/{LATE[value]}"


def test_prompts_that_fail_late(tmp_path):
    """At the third call: two are made before the training."""
    late = "def prompts(self): self.n = getattr(self, 'n', 0) + 1; return ['a'] * (1 + 1 // (3 - self.n))"
    (tmp_path / "task.py").write_text(TASK.replace('def prompts(self): return ["a", "b"]', late))
    task = load_task(str(tmp_path / "task.py"))
    with pytest.raises(DataError, match=r"task\.py, line 5, in prompts: ZeroDivisionError"):
        task.prompts()


def test_prompts_may_be_a_generator(tmp_path):
    (tmp_path / "task.py").write_text(TASK.replace('return ["a", "b"]', 'yield from "ab"'))
    assert load_task(str(tmp_path / "task.py")).prompts() == ["a", "b"]


@pytest.mark.parametrize("name", ["notes.txt", "folder.py", "absent.py"])
def test_what_is_no_python_file(tmp_path, capsys, name):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.py").mkdir()
    message = refused(capsys, "rlhf", "--task", tmp_path / name, "--out", tmp_path / "out", exit_code=2)
    assert f"{name} is neither a Python file nor one of paths, code; name one, or a file NAME.py." in message


def test_a_task_behind_a_link_and_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real.py").write_text(TASK)
    (tmp_path / "link.py").symlink_to("real.py")
    assert load_task("~/link.py").prompts() == ["a", "b"]
