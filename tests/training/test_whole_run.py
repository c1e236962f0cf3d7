"""From a text file to a finished run: its files and figures, and the next command."""

import csv
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
from math import exp, log, log2

import numpy as np
import pytest
from small_runs import TINY, pretrain_arguments, refused, run, summary, untimed_metrics, write_text

import npllm
from npllm.data.shards import read_shard
from npllm.model import GPT
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder, open_run
from npllm.tokenizer import train_bpe, train_char
from npllm.training import results
from npllm.training.results import next_command, sample_positions, shard_text

SETTINGS = {"train__steps": 40, "batch__ramp_start": 2, "batch__ramp_steps": 10, "optim__lr": 0.02}


def held_out(text) -> bytes:
    """The last tenth of the characters; all are ASCII here."""
    data = text.read_bytes()
    return data[int(len(data) * 0.9) :]


def brute_force_bits_per_byte(run_folder) -> float:
    """Bits per byte in float64, from the logits of windows that follow one another."""
    model, tokenizer = npllm.load(run_folder)
    exact = GPT(model.config, dtype="float64")
    exact.params.flat[:] = 0
    for name, array in model.params.items():
        exact.params[name][:] = array
    shard = read_shard(run_folder / "data" / "val.h5")
    tokens, T = shard.tokens.astype(np.int64), model.config.block_size
    bits = log2(model.config.vocab_size)
    for start in range(0, len(tokens) - 1, T):
        window = tokens[start : start + T + 1]
        logits = exact.logits(window[None, :-1])[0]
        for row, target in zip(logits, window[1:], strict=True):
            bits += (log(np.exp(row).sum()) - row[target]) / log(2)
    return bits / shard.n_bytes


def test_a_run_from_beginning_to_end(tmp_path, capsys):
    text, out = write_text(tmp_path), tmp_path / "a run"
    assert run(*pretrain_arguments(text, out, **SETTINGS)) == 0
    printed = capsys.readouterr().out

    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        ".lock",
        "checkpoints/manifest.json",
        "checkpoints/step-00000000.h5",
        "checkpoints/step-00000040.h5",
        "config.toml",
        "data/train.h5",
        "data/val.h5",
        "loss.png",
        "metrics.csv",
        "metrics.jsonl",
        "samples.jsonl",
        "samples.txt",
        "summary.json",
        "tokenizer.json",
    ]
    figures = summary(out)
    assert figures["val_bits_per_byte"] == pytest.approx(brute_force_bits_per_byte(out), rel=1e-5)
    assert figures["val_bits_per_byte"] < 3.9  # it has learnt: log2 of 18 characters is 4.17
    n_bytes = len(held_out(text))  # a character is a byte is a token here
    expected_loss = (figures["val_bits_per_byte"] * n_bytes - log2(18)) * log(2) / (n_bytes - 1)
    assert figures["val_loss"] == pytest.approx(expected_loss, rel=1e-12)
    assert figures["val_perplexity"] == pytest.approx(exp(figures["val_loss"]), rel=1e-12)
    compressed = gzip.compress(held_out(text), compresslevel=9, mtime=0)
    assert figures["gzip_bits_per_byte"] == 8 * len(compressed) / n_bytes
    batches = [record["batch"] for record in read_metrics(out / "metrics.jsonl")]
    assert batches == [2] * 10 + [4] * 30
    assert figures["tokens"] == sum(batches) * TINY["model.block_size"]
    assert figures["steps"] == 40
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in read_metrics(out / "metrics.jsonl")]
    assert [row["step"] for row in rows if row["val_loss"]] == ["40"]  # empty where it was not measured
    seconds = sum(record["seconds"] for record in read_metrics(out / "metrics.jsonl"))
    assert figures["seconds"] == pytest.approx(seconds, abs=1e-3)
    model, _ = npllm.load(out)
    assert figures["params_sha256"] == hashlib.sha256(model.params.flat.tobytes()).hexdigest()

    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (out / "samples.txt").read_text().count("=== sample") == 3
    for shown in ("this model", "gzip -9", f"{figures['val_bits_per_byte']:.3f}", f"loss {figures['val_loss']:.4f}"):
        assert shown in printed
    assert " MB (10.0 %): the end of text.txt\n" in printed
    check_evaluate(out, text, figures, capsys)
    (command,) = [line.removeprefix("Next: ") for line in printed.splitlines() if line.startswith("Next: ")]
    program, *arguments = shlex.split(command)
    assert program == "npllm"
    assert run(*arguments, "--max_tokens", "5") == 0
    prompt = arguments[-1].removeprefix("--prompt=")
    assert capsys.readouterr().out.startswith(prompt)


def test_a_model_that_counting_would_beat_is_told_so(tmp_path, capsys):
    """With a learning rate a thousand times too high the run finishes, and its figures
    alone do not show that it failed."""
    text, out = write_text(tmp_path), tmp_path / "run"
    assert run(*pretrain_arguments(text, out, **SETTINGS | {"optim__lr": 20.0})) == 0
    assert "predicts this text better" in capsys.readouterr().out


def check_evaluate(out, text, figures, capsys):
    """`npllm evaluate` prints the figures of the summary, for the run's own text and
    for the same text in a file."""

    def shown(*arguments):
        assert run("evaluate", *arguments) == 0
        return capsys.readouterr().out

    own = shown(out)
    for figure in (f"{figures['val_loss']:.4f} nats", f"{figures['val_perplexity']:.3f}"):
        assert figure in own
    assert f"bits per byte  {figures['val_bits_per_byte']:.4f}" in own
    (text.parent / "held_out.txt").write_bytes(held_out(text))
    assert shown(out, "--data", text.parent / "held_out.txt") == own
    assert shown(out / "checkpoints" / "step-00000040.h5") == own
    assert shown(out, "--data", text) != own


def bpe_settings(folder):
    return {"data__tokenizer": "bpe", "data__vocab_size": 270}


def tokenizer_file_settings(folder):
    path = folder / "given.json"
    train_bpe(["the cat sat on the mat"], 262).save(path)
    return {"data__tokenizer": path}


@pytest.mark.parametrize(
    "settings",
    [lambda folder: {"data__tokenizer": "byte"}, bpe_settings, tokenizer_file_settings],
    ids=["byte", "bpe", "tokenizer.json"],
)
@pytest.mark.usefixtures("quick")
def test_every_kind_of_tokenizer(tmp_path, settings):
    """Two documents with characters of several bytes, so that the numbers of tokens,
    characters and bytes differ."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(f"Grüße aus 東京 🦜 {name}!\n" * 30, encoding="utf-8")
    out = tmp_path / "run"
    assert run(*pretrain_arguments(folder, out, **settings(tmp_path))) == 0
    figures, shard = summary(out), read_shard(out / "data" / "val.h5")
    assert figures["val_bits_per_byte"] == pytest.approx(brute_force_bits_per_byte(out), rel=1e-5)
    held_out = shard_text(shard, RunFolder(out).load_tokenizer())
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("a", "b")]
    assert held_out.decode() == "".join(text[int(0.9 * len(text)) :] for text in texts)
    assert shard.n_bytes == len(held_out)
    assert shard.tokens[-1] == shard.eot_id
    assert figures["gzip_bits_per_byte"] == 8 * len(gzip.compress(held_out, 9, mtime=0)) / len(held_out)
    given = settings(tmp_path)["data__tokenizer"]
    if given not in ("byte", "bpe"):
        assert (out / "tokenizer.json").read_bytes() == given.read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_bpe_vocabulary_is_made_from_the_training_text_alone(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("abcd " * 100 + "wxyz " * 900)
    settings = {"data__tokenizer": "bpe", "data__vocab_size": 260, "data__val_fraction": 0.9}
    assert run(*pretrain_arguments(text, out, **settings)) == 0
    merges = json.loads((out / "tokenizer.json").read_text())["model"]["merges"]
    assert len(merges) == 3
    assert not set("wxyz") & set("".join(merges))


@pytest.mark.usefixtures("quick")
def test_a_char_vocabulary_can_write_down_the_validation_text(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("abcd " * 100 + "é" * 10)
    assert run(*pretrain_arguments(text, out)) == 0
    assert "é" in json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]


@pytest.mark.usefixtures("quick")
def test_text_of_nothing_but_spaces_in_the_prompt(tmp_path, capsys):
    """The samples and the next command use the start of the validation text, which can
    be blank."""
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("a b\n" * 300 + " \n" * 300)
    assert run(*pretrain_arguments(text, out, data__val_fraction=0.2)) == 0
    assert f"Next: npllm generate {out}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        ("def main(): pass", "npllm generate runs/x --prompt='def '"),
        ("  \n\tindented", "npllm generate runs/x --prompt=indented"),
        ('"""Doc', 'npllm generate runs/x --prompt=\'"""Doc\''),
        ("it's $HOME", """npllm generate runs/x --prompt='it'"'"'s '"""),
        ("--help me", "npllm generate runs/x --prompt='--help '"),
        (" \n", "npllm generate runs/x"),
        ("", "npllm generate runs/x"),
    ],
)
def test_the_next_command_can_be_pasted_into_a_shell(prompt, command):
    assert next_command(RunFolder("runs/x").path, prompt) == command


def test_samples_begin_where_documents_do(finished_run):
    shard = read_shard(finished_run / "data" / "val.h5")
    n = len(shard.tokens)
    assert sample_positions(shard) == [0, n // 3, 2 * n // 3]  # one document: evenly spread
    many = shard._replace(document_starts=np.array([0, 2, 5, 9, 20, 33, 34]))
    assert sample_positions(many) == [0, 5, 20]


@pytest.mark.usefixtures("quick")
def test_a_sample_prompt_ends_with_its_document(tmp_path):
    folder, out = tmp_path / "texts", tmp_path / "run"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}").write_text(f"short {number}\n")
    settings = {"data__tokenizer": "byte", "data__val_fraction": 0.3, "model__block_size": 32}
    assert run(*pretrain_arguments(folder, out, **settings)) == 0
    prompts = re.findall(r"continuation ===\n([^|]*)\|", (out / "samples.txt").read_text())
    assert len(prompts) == 3
    for prompt in prompts:
        assert re.fullmatch(r"short \d+\n", prompt)


def test_an_excerpt_loses_the_halves_of_characters_at_its_ends():
    text = "é🦜漢".encode()
    spans = [(first, last) for first in range(4) for last in range(4, 10)]
    excerpts = {(first, last): results.whole_characters(text[first:last]) for first, last in spans}
    assert excerpts[0, 6] == excerpts[0, 8] == "é🦜"
    assert excerpts[1, 9] == excerpts[2, 9] == "🦜漢"
    assert excerpts[3, 9] == "漢"
    assert not any("\ufffd" in excerpt for excerpt in excerpts.values())


@pytest.mark.usefixtures("quick")
def test_samples_have_whole_characters(tmp_path):
    """The prompts are 16 bytes from any place of the text. A character has 3 bytes."""
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("".join(chr(0x4E00 + i) for i in range(999)), encoding="utf-8")
    assert run(*pretrain_arguments(text, out, data__tokenizer="byte", model__block_size=32)) == 0
    prompts = re.findall(r"continuation ===\n([^|]*)\|", (out / "samples.txt").read_text(encoding="utf-8"))
    assert [len(prompt) for prompt in prompts] == [5, 4, 5]
    assert "\ufffd" not in "".join(prompts)


@pytest.mark.usefixtures("quick")
def test_a_plot_that_fails_costs_no_result(tmp_path, capsys, monkeypatch):
    def fail(history, path):
        raise RuntimeError("In the fonts,\nsomething is wrong.")

    monkeypatch.setattr(results, "plot_loss", fail)
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out)) == 0
    printed = capsys.readouterr().out
    assert "\nNo loss plot: In the fonts, something is wrong.\nNext: npllm generate" in printed
    assert summary(out)["val_loss"] > 0


@pytest.mark.usefixtures("quick")
def test_the_same_command_gives_the_same_run(tmp_path):
    text = write_text(tmp_path)
    for name in ("one", "two"):
        assert run(*pretrain_arguments(text, tmp_path / name, **SETTINGS)) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert summary(one)["params_sha256"] == summary(two)["params_sha256"]
    assert untimed_metrics(one) == untimed_metrics(two)
    for name in ("config.toml", "tokenizer.json", "data/train.h5", "data/val.h5", "samples.txt"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_evaluating_what_the_vocabulary_lacks(tmp_path, capsys, finished_run):
    path = tmp_path / "other.txt"
    path.write_text("the cat\nΩmega")
    assert f"{path}, line 2: the character 'Ω'" in refused(
        capsys, "evaluate", finished_run, "--data", path, exit_code=3
    )
    assert "cannot be read" in refused(capsys, "evaluate", finished_run, "--data", tmp_path / "absent", exit_code=3)


def test_evaluating_what_is_no_file(tmp_path, capsys, finished_run):
    """With a pipe it would wait, and with a device it would fill the memory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert f"{path} is no ordinary file" in refused(capsys, "evaluate", finished_run, "--data", path, exit_code=3)


def test_a_run_without_a_checkpoint_says_so(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    assert open_run(tmp_path).path == tmp_path
    assert "has no checkpoint; train the run first" in refused(capsys, "generate", tmp_path, exit_code=3)


def test_a_tokenizer_of_another_size_says_so(tmp_path, capsys, finished_run):
    """Otherwise a token beyond the embedding would cause a crash, or be read as another
    token."""
    out = shutil.copytree(finished_run, tmp_path / "run")
    train_char(["a few letters"]).save(out / "tokenizer.json")
    for verb in ("generate", "evaluate"):
        assert f"{out / 'tokenizer.json'} has " in refused(capsys, verb, out, exit_code=3)
