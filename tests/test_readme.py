"""The pages are true: their commands and their Python run, and their links exist."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from shutil import which

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE

from benchmarks.configs import CONFIGS, TINY
from npllm.rlhf import report_card
from npllm.rlhf.tasks import load_task
from npllm.training import spike_demo
from npllm.training.config import DataConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "npllm/README.md",
    "npllm/reference/README.md",
    "npllm/distributed/README.md",
    "npllm/finetuning/README.md",
    "npllm/interop/README.md",
    "npllm/rlhf/README.md",
    "npllm/serve/README.md",
    "tests/reliability/README.md",
    "benchmarks/README.md",
]
MPIEXEC = which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
MOST_WORDS = 1500  # of the first page
SHORTER = ["--train.steps", "3", "--batch.size", "8", "--batch.micro_size", "2", "--model.n_embd", "32"]
SMALL_TEXT = ["--data.source", "pydoc", "--data.vocab_size", "300"]
STAGES = ("classify", "sft", "reward", "ppo", "dpo")
SHORTER_STAGE = ["--train.steps", "2", "--batch.size", "4", "--batch.micro_size", "4"]
SHORTEST = {
    "classify": ["labels", "2", "seeds", "2", "min_updates", "1", "epochs", "0.1", "test_texts", "8"],
    "ppo": ["rollout_size", "4", "max_tokens", "4", "epochs", "1"],
}
RECORDS = {
    "demonstrations.jsonl": [{"prompt": f"{i} plus 1 is ", "response": f"{i + 1}"} for i in range(40)],
    "preferences.jsonl": [{"prompt": f"{i} is ", "chosen": "even", "rejected": "odd"} for i in range(0, 80, 2)],
    "prompts.jsonl": [{"prompt": f"{i} is "} for i in range(8)],
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def run(command: str) -> int:
    """Run an npllm or benchmarks command; its exit code. mpiexec starts processes, any
    other command runs in this one.

    A command that trains or measures gets options that make it shorter.
    """
    words = shlex.split(command)
    if words[0] == "npllm":
        from npllm.cli import main

        return main(shortened(words[1:]))
    if words[0] == "mpiexec":
        if MPIEXEC is None or find_spec("mpi4py") is None:
            pytest.skip("needs mpi4py and mpiexec: pip install 'npllm[mpi]'")
        job = [MPIEXEC, *words[1:3], *NPLLM, *shortened(words[4:])]
        return subprocess.run(job, env=ENVIRONMENT, timeout=PATIENCE).returncode
    if command == "python -m npllm.reference":
        return 0  # tests/reference/test_lesson.py runs it whole, and reads what it prints
    assert words[:3] == ["python", "-m", "benchmarks"], f"no test runs this command: {command}"
    from benchmarks.cli import main

    return main([*words[3:], "--rounds", "1"])


def shortened(words: list[str]) -> list[str]:
    """Words of an npllm command, with options that make it shorter."""
    verb, words = words[0], list(words)
    if verb == "pretrain" and "--help" not in words:
        words += SHORTER[:-2] if "--from" in words else SHORTER  # the width is that of the other run
        words += [] if "--data.source" in words else SMALL_TEXT
    if "--minutes" in words:  # in place of the steps, so it must be small
        words[words.index("--minutes") + 1] = "0.01"
    if verb in STAGES:
        own = SHORTEST.get(verb, [])
        words += SHORTER_STAGE + [word if i % 2 else f"--{verb}.{word}" for i, word in enumerate(own)]
    return words


def shorten_the_demo(monkeypatch) -> None:
    """Make `npllm demo spike` small by its two constants: there are no options."""
    config = replace(
        spike_demo.CONFIG,
        data=DataConfig(source=("pydoc",), tokenizer="byte"),
        train=replace(spike_demo.CONFIG.train, steps=12),
    )
    monkeypatch.setattr(spike_demo, "CONFIG", config)
    monkeypatch.setattr(spike_demo, "POISON", spike_demo.Poison(first=6, batches=2, growth=1))


def shorten_the_tasks(monkeypatch) -> list[str]:
    """Replace the runs of `npllm rlhf`, which has no options for its size either.

    tests/rlhf/test_pipeline.py runs a whole pipeline. Returns a list that receives the
    names of the tasks that were asked for.
    """
    tasks: list[str] = []
    monkeypatch.setattr(report_card, "run_and_report", lambda name, *_, **__: tasks.append(load_task(name).name))
    return tasks


SHORT_PAGES = ("npllm/README.md", "npllm/reference/README.md", "npllm/serve/README.md", "tests/reliability/README.md")


@pytest.mark.parametrize(
    "page", [page if page in SHORT_PAGES else pytest.param(page, marks=pytest.mark.long) for page in PAGES]
)
@pytest.mark.usefixtures("library_parsed_once")
def test_commands_run_in_the_order_of_the_page(page, tmp_path, monkeypatch, capsys):
    """Every command of a page runs, in the page's order, and ends with exit code 0.

    tests/benchmarks tests each benchmark; here their page runs them all in order.
    """
    monkeypatch.chdir(tmp_path)
    shorten_the_demo(monkeypatch)
    tasks = shorten_the_tasks(monkeypatch)
    for name in ("cpu", "default"):  # tests/benchmarks measures these models themselves
        monkeypatch.setitem(CONFIGS, name, TINY)
    monkeypatch.setattr("sys.stdin", io.StringIO("def parse(text):\n"))  # the user's words in `npllm chat`
    for name, records in RECORDS.items():
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    Path("notes").mkdir()
    for name in ("notes/monday.txt", "tinyshakespeare.txt"):
        Path(name).write_text("\n".join(topics.values())[:100_000], encoding="utf-8")
    for command in commands(page):
        step = command.split(" && ")[-1]  # .ci/run installs the package before the tests
        if step == "pytest":
            continue
        code = run(step)
        assert code == 0, f"{step} ended with {code}: {capsys.readouterr().err}"
    assert len(tasks) == sum("npllm rlhf" in command for command in commands(page))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", text_of(page))
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_page_can_be_reached_from_the_first():
    found, new = set(), {"README.md"}
    while new:
        found |= new
        links = {
            (ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT).as_posix()
            for page in new
            for link in re.findall(r"\]\(([^)]+\.md)\)", text_of(page))
        }
        new = links - found
    assert found == set(PAGES)


def test_the_first_page_is_short():
    assert len(text_of("README.md").split()) <= MOST_WORDS


def test_the_two_commands_stand_as_the_ci_runs_them():
    assert commands("README.md")[0] == 'pip install -e ".[full]" && npllm pretrain'
    assert commands("README.md")[1] == 'pip install -e ".[full,test]" && pytest'
