"""The race of learning: budgets, statistics, and a whole race of tiny models."""

import json

import pytest
from small_runs import write_text
from test_benchmark_commands import FACTS, has_torch

from benchmarks import cli, learn
from benchmarks.race import PEERS_PYTHON


def test_a_budget_of_tokens_becomes_as_many_steps_as_the_batches_need():
    budget = learn.Budget(3.0, tokens=10_000)
    plain = ["classic", "--batch.ramp_start", "None", "--batch.ramp_steps", "0", "--model.block_size", "100"]
    assert budget.options([*plain, "--batch.size", "25"]) == ["--train.steps", "4"]
    assert budget.options([*plain, "--batch.size", "26"]) == ["--train.steps", "4"]
    assert budget.options([*plain, "--batch.size", "24"]) == ["--train.steps", "5"]
    assert budget.options(["classic"]) == ["--train.steps", "10"]  # its first batches have 8 × 128 tokens
    assert learn.Budget(0.5).options(["classic"]) == ["--minutes", "0.5"]


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], 2 / 20),  # the most extreme of 20 divisions, in both directions
        ([1.0, 2.0], [1.0, 2.0], 1.0),
        ([1.0, 4.0], [2.0, 3.0], 1.0),
        ([1.0, 2.0], [3.0, 4.0], 2 / 6),
        # of the six differences 0.5, 1, 1.5, 1.5, 1 and 0.5 four are at least 1
        ([1.0, 3.0], [2.0, 4.0], 4 / 6),
    ],
)
def test_chance_counts_the_divisions_that_differ_as_much(first, second, p):
    assert learn.chance(first, second) == pytest.approx(p)


def row(contender, seed, bits, seconds=10.0, tokens=1000):
    curve = [(1.0, bits + 1.0), (seconds, bits)]
    of_all = {"parameters": 7, "corpus_sha256": "ab", "curve": curve}
    compressed = {f"{name}_bits_per_byte": 2.0 for name in learn.COMPRESSORS}
    return {"contender": contender, "seed": seed, "bits_per_byte": bits, "seconds": seconds, "tokens": tokens} | (
        of_all | compressed
    )


def test_means_and_errors_are_over_the_seeds_and_differences_against_the_first():
    rows = [row("a", 0, 1.5), row("b", 0, 1.0, 20.0), row("a", 1, 1.7), row("b", 1, 1.2, 10.0)]
    rows.append({"contender": "peer", "seed": 0, "failure": "it is not there"})
    a, b = learn.summarise(rows)
    assert (a["contender"], a["difference"], a["p"]) == ("a", None, None)
    assert a["bits_per_byte"] == pytest.approx(1.6)
    assert a["error"] == pytest.approx(0.1)  # 0.1414 / sqrt(2)
    assert b["difference"] == pytest.approx(-0.5)
    assert b["p"] == pytest.approx(2 / 6)
    assert b["tokens_per_s"] == pytest.approx(75.0)
    assert learn.verdict(rows)[-1] == "peer did not take part: it is not there"


def test_one_seed_has_no_error_and_no_p():
    first, second = learn.summarise([row("a", 0, 1.5), row("b", 0, 1.0)])
    assert first["error"] is second["error"] is second["p"] is None
    assert second["difference"] == pytest.approx(-0.5)


@pytest.mark.long
def test_a_race_of_tiny_models(tmp_path, monkeypatch, capsys):
    """The same recipe twice has the same bits; another learning rate has others."""
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: FACTS)
    monkeypatch.delenv(PEERS_PYTHON, raising=False)
    text = write_text(tmp_path, 400)
    small = f"default --data.source {text} --data.tokenizer byte --model.n_layer 1 --model.n_embd 32 --optim.name adamw"
    contenders = [small, f"{small} --optim.lr 1e-9", f"{small} --train.threads 1"]
    files = ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "plot.png")]
    assert cli.main(["learn", "--contenders", *contenders, "--tokens", "9000", "--seeds", "2", *files]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    bits = {(row["contender"], row["seed"]): row.get("bits_per_byte") for row in rows}
    assert len(bits) == 8
    for seed in (0, 1):
        assert bits[contenders[0], seed] == bits[contenders[2], seed] < bits[contenders[1], seed] - 0.5
    assert bits[contenders[0], 0] != bits[contenders[0], 1]
    assert all(row["tokens"] == 9 * 1024 for row in rows if "tokens" in row)
    assert "PyTorch, nanoGPT did not take part" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@has_torch
def test_pytorch_learns_the_same_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: FACTS)
    monkeypatch.setenv("COLUMNS", "200")
    text = write_text(tmp_path, 400)
    small = f"default --data.source {text} --data.tokenizer byte --model.n_layer 1 --model.n_embd 32"
    assert cli.main(["learn", "--contenders", small, "--minutes", "0.02", "--seeds", "1"]) == 0
    assert "did not take part" not in capsys.readouterr().out
