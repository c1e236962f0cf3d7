"""The sweep of induction heads: its moments, its rows, and what it says."""

import json
import shlex

import pytest
from small_runs import pretrain_arguments, run, write_text
from test_benchmark_commands import FACTS

import npllm
from benchmarks import cli, heads
from npllm.data.shards import read_shard
from npllm.pages.learnt.measure import measure
from npllm.pages.learnt.windows import Windows, of_shard
from npllm.runs.checkpoint import checkpoint_path
from npllm.runs.run_folder import RunFolder


def test_a_checkpoint_is_saved_at_each_moment():
    """Fails if the moments are not spread evenly, or the first ones are pruned."""
    words = heads.options_of("default --model.n_layer 2", tokens=10_000, moments=4, seed=3)
    assert words == shlex.split(
        "--recipe default --model.n_layer 2 --train.steps 10 --train.eval_every 3 --train.checkpoint_every 3 "
        "--train.keep 4 --train.seed 3"
    )


def test_the_rows_are_what_the_report_measures(tmp_path):
    """Fails if a row has the weights, the tokens or the heads of another moment."""
    moments = {"train__eval_every": 3, "train__checkpoint_every": 3, "train__keep": 2}
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "run", **moments)) == 0
    folder = RunFolder(tmp_path / "run")
    rows = heads.rows_of(folder)
    metrics = npllm.Run(folder.path).metrics
    assert [row["tokens"] for row in rows] == [0, metrics["tokens"][2], metrics["tokens"][5]]
    for row, step in zip(rows[1:], (3, 6), strict=True):
        model, tokenizer = npllm.load(checkpoint_path(folder.checkpoints, step))
        windows = Windows(of_shard(read_shard(folder.val_shard)), tokenizer, model.config)
        scores = measure(model, windows, None, model.seed).heads
        for kind in heads.SHOWN:
            found = row[kind]
            assert found["score"] == scores[kind].scores[found["layer"], found["head"]] == scores[kind].scores.max()
            assert found["chance"] == scores[kind].chance
    assert rows[1]["induction"] != rows[2]["induction"] != rows[0]["induction"]
    assert rows[2]["bits_per_byte"] < rows[1]["bits_per_byte"]


def row(contender, seed, tokens, score):
    head = {"score": score, "layer": 2, "head": 3, "chance": 0.01, "is_found": score > 0.25}
    return {"contender": contender, "seed": seed, "tokens": tokens, "parameters": 7} | dict.fromkeys(heads.SHOWN, head)


def test_the_verdict_names_the_first_moment_with_a_head():
    rows = [row("a", 0, tokens, 0.01) for tokens in (0, 10, 20)]
    rows += [row("b", 1, tokens, score) for tokens, score in ((0, 0.01), (1000, 0.3), (2000, 0.5))]
    assert heads.verdict(rows)[1:] == [
        "a, 7 parameters, seed 0: no induction head",
        "b, 7 parameters, seed 1: induction head after 1,000 tokens: layer 2, head 3",
    ]


def test_trainings_with_other_moments_share_a_table():
    rows = [row("a", 0, 0, 0.01), row("a", 0, 1_000_000, 0.2), row("b", 0, 0, 0.01), row("b", 0, 500_000, 0.3)]
    table = heads.tables(rows)[0]
    assert [column.header for column in table.columns] == ["contender", "seed", "chance", "0.00M", "0.50M", "1.00M"]
    cells = [list(column.cells) for column in table.columns]
    assert list(zip(*cells, strict=True)) == [
        ("a", "0", "0.010", "0.010", "", "0.200"),
        ("b", "0", "0.010", "0.010", "0.300", ""),
    ]


@pytest.mark.long
def test_a_sweep_of_tiny_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: FACTS)
    monkeypatch.setenv("COLUMNS", "200")
    small = f"default --data.source {write_text(tmp_path, 400)} --data.tokenizer byte --model.n_embd 32"
    contenders = [f"{small} --model.n_layer {n_layer}" for n_layer in (1, 2)]
    figures = tmp_path / "figures.json"
    command = ["heads", "--contenders", *contenders, "--tokens", "6000", "--moments", "2", "--json", str(figures)]
    assert cli.main(command) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [0, 3 * 1024, 6 * 1024] * 2
    assert all(row["induction"]["layer"] == 0 for row in rows[:3])
    assert "seed 0: no induction head" in capsys.readouterr().out
