"""`npllm classify` from texts to table, plot and summary; resuming; and its errors."""

import io
import json
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    broken_at_80_columns,
    pretrain_arguments,
    run,
    shown_on_a_terminal,
    state_digests,
    stop_after,
    summary,
    write_text,
)

from npllm.data.records import Labelled, write_records
from npllm.errors import ConfigError, DataError, Interrupted, ResourceError
from npllm.finetuning import learning_curve
from npllm.finetuning.classify import STAGE, classify_inputs
from npllm.finetuning.classify_config import ClassifyConfig, ClassifySettings
from npllm.finetuning.classify_report import accuracy_table
from npllm.finetuning.learning_curve import Point, read_curve
from npllm.optim import BatchConfig, OptimConfig
from npllm.output import TextConsole
from npllm.report.transfer_plot import transfer_figure
from npllm.runs.config_file import load_config
from npllm.runs.run_folder import RunFolder
from npllm.training.available import Left
from npllm.training.config import TrainConfig
from npllm.training.stage import create_run, start_run, train_run

CONFIG = ClassifyConfig(
    classify=ClassifySettings(labels=(2, 4, 64), seeds=2, compare_scratch=True, min_updates=4, test_texts=6),
    optim=OptimConfig(lr=1e-2, min_lr=0.0, warmup_steps=1, decay="linear"),
    batch=BatchConfig(size=4, micro_size=4),
    train=TrainConfig(steps=6, checkpoint_every=2, eval_every=3),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model whose vocabulary has the letters of the texts below."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npllm.training.results.SAMPLE_TOKENS", 2)
        patch.setattr("npllm.training.results.plot_loss", lambda *_: None)
        assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return folder / "run"


def records(n: int = 12) -> list[Labelled]:
    """n texts of each class, which differ in their last word. Half of them are longer
    than the model's block_size of 8."""
    beginnings = ["a mat ", "under the roof ", "on ", "and the "]
    return [
        Labelled(f"{beginnings[i % 4]}{'a ' * (i // 4)}{word}", word[0]) for i in range(n) for word in ("cat", "dog")
    ]


def classify(config, base, data, test, out, console):
    """Do what `npllm classify` does."""
    start_run(STAGE, config, out, console, run=base, data=str(data), test=test)


def shown(out: Path, action) -> str:
    """The output of an action."""
    console = TextConsole(file=io.StringIO(), width=120)
    action(console)
    return console.file.getvalue()


@pytest.fixture
def finished(base, tmp_path, quick):
    """A finished run on one file of texts, and its output."""
    write_records(tmp_path / "texts.jsonl", records())
    out = tmp_path / "run"
    text = shown(out, lambda console: classify(CONFIG, base, tmp_path / "texts.jsonl", None, out, console))
    return out, text


def test_it_ends_in_a_table_a_plot_and_a_summary(finished):
    out, text = finished
    figures = summary(out)
    assert figures["classes"] == ["c", "d"]
    assert figures["steps"] == 6
    curves = figures["accuracy_by_labels_per_class"]
    assert {method: list(curve) for method, curve in curves.items()} == {
        "pretrained": ["2", "4"],
        "scratch": ["2", "4"],
    }
    for curve in curves.values():
        for point in curve.values():
            one, other = point["seeds"]
            assert point["mean"] == pytest.approx((one + other) / 2)
            assert point["interval"] == pytest.approx(12.706 * abs(one - other) / 2)  # t with one degree of freedom
            assert 0 <= point["mean"] <= 1
            assert f"{point['mean']:.1%} ± {100 * point['interval']:.1f}" in text
    assert "labels per class" in text
    assert f"Next: npllm predict {out} --data={out / 'data' / 'test.jsonl'}" in text
    assert str(out / "accuracy.png") in text
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    points = read_curve(out / "curve.jsonl")
    assert {(point.labels, point.updates) for point in points} == {(2, 4), (4, 6)}  # at least 4; 3 epochs of 8 / 4
    assert [(point.method, point.seed) for point in points[:4]] == [
        ("pretrained", 0),
        ("pretrained", 1),
        ("scratch", 0),
        ("scratch", 1),
    ]


def test_80_columns_break_no_figure_of_the_table():
    points = [Point(method, 10_000, 0, 123_456, 1.0) for method in ("pretrained", "scratch")]
    curves = {point.method: {point.labels: (1.0, 6.353)} for point in points}
    assert broken_at_80_columns(accuracy_table(curves, points)) == []


def test_the_split_is_the_runs_and_no_text_is_on_both_sides(finished):
    out, _ = finished
    sides = [(out / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")]
    assert (len(sides[0]), len(sides[1])) == (20, 4)  # a fifth of 12, rounded down, of each class
    assert not set(sides[0]) & set(sides[1])
    assert load_config(out / "config.toml", ClassifyConfig) == CONFIG


def stop_in_the_curve(monkeypatch, training: int) -> None:
    """Press Ctrl-C in the middle of one training of the curve, counted from 1."""
    real_updates, count = learning_curve.updates, iter(range(1, 100))

    def updates(*args):
        number = next(count)
        for update in real_updates(*args):
            if number == training and update.step == 2:
                signal.raise_signal(signal.SIGINT)
            yield update

    monkeypatch.setattr(learning_curve, "updates", updates)


def test_stopped_and_resumed_it_ends_with_the_same_bits(finished, base, tmp_path, monkeypatch):
    straight, _ = finished
    out = tmp_path / "stopped"
    silent = TextConsole(file=io.StringIO())
    stop_after(monkeypatch, 3)
    stop_in_the_curve(monkeypatch, 5)
    with pytest.raises(Interrupted, match="after step 3"):
        classify(CONFIG, base, str(tmp_path / "texts.jsonl"), None, out, silent)
    assert not (out / "curve.jsonl").exists()
    with pytest.raises(Interrupted, match="after 4 trainings; go on with: npllm resume"):
        train_run(RunFolder(out), silent, STAGE)
    assert len(read_curve(out / "curve.jsonl")) == 4
    assert not (out / "summary.json").exists()
    train_run(RunFolder(out), silent, STAGE)
    assert state_digests(out) == state_digests(straight)
    assert (out / "curve.jsonl").read_text() == (straight / "curve.jsonl").read_text()
    assert {k: v for k, v in summary(out).items() if k != "seconds"} == {
        k: v for k, v in summary(straight).items() if k != "seconds"
    }


def test_a_finished_run_can_be_trained_further(finished):
    """The learning curve stays as it is."""
    out, _ = finished
    config, curve = out / "config.toml", (out / "curve.jsonl").read_text()
    config.write_text(config.read_text().replace("\nsteps = 6\n", "\nsteps = 9\n"))
    assert run("resume", out) == 0
    assert summary(out)["steps"] == 9
    assert (out / "curve.jsonl").read_text() == curve
    assert run("verify", out) == 0
    resumed = shown_on_a_terminal(lambda console: train_run(RunFolder(out), console, STAGE))
    assert "evaluating" in resumed


def test_pretrained_only_and_a_test_file(base, tmp_path, quick, monkeypatch):
    seeds, real_begin = [], learning_curve.initial_state

    def begin(base, config, *args, **options):
        seeds.append(config.train.seed)
        return real_begin(base, config, *args, **options)

    monkeypatch.setattr(learning_curve, "initial_state", begin)
    write_records(tmp_path / "texts.jsonl", records(4))
    write_records(tmp_path / "test.jsonl", records(12))
    settings = replace(CONFIG.classify, compare_scratch=False, labels=(2,))
    config = replace(CONFIG, classify=settings, train=TrainConfig())
    out = tmp_path / "run"
    paths = str(tmp_path / "texts.jsonl"), tmp_path / "test.jsonl"
    text = shown(out, lambda console: classify(config, base, *paths, out, console))
    assert "scratch" not in text
    assert list(summary(out)["accuracy_by_labels_per_class"]) == ["pretrained"]
    assert seeds == [0, 1]
    assert len((out / "data" / "train.jsonl").read_text().splitlines()) == 8
    assert len((out / "data" / "test.jsonl").read_text().splitlines()) == 6  # test_texts
    assert summary(out)["steps"] == 6  # 3 epochs of 8 texts in batches of 4


def create(base, tmp_path, train, test=None, **settings):
    config = replace(CONFIG, classify=replace(CONFIG.classify, **settings))
    return create_run(STAGE, classify_inputs(config, base, train, test), tmp_path / "refused", TextConsole(quiet=True))


def test_each_method_has_its_learning_rate(base, tmp_path, quick, monkeypatch):
    rates = []

    def watched(state, config, gradients):
        rates.append((state.step, config.optim.lr))
        return learn(state, config, gradients)

    learn = learning_curve.updates
    monkeypatch.setattr(learning_curve, "updates", watched)
    settings = replace(CONFIG.classify, labels=(2,), scratch_lr=0.25)
    silent = TextConsole(quiet=True)
    inputs = classify_inputs(replace(CONFIG, classify=settings), base, records(), None)
    train_run(create_run(STAGE, inputs, tmp_path / "run", silent), silent, STAGE)
    assert rates == [(0, 1e-2), (0, 1e-2), (0, 0.25), (0, 0.25)]


def test_refusals_about_texts(base, tmp_path):
    of_one_class = [Labelled("cat", "c")] * 5
    with pytest.raises(DataError, match="at least two classes"):
        create(base, tmp_path, of_one_class)
    write_records(tmp_path / "one.jsonl", of_one_class)
    with pytest.raises(DataError, match="at least two classes"):
        classify(CONFIG, base, str(tmp_path / "one.jsonl"), None, tmp_path / "refused", TextConsole())
    with pytest.raises(DataError, match="The class 'd' has 2 training texts, fewer than .* classify.labels, 3;"):
        create(base, tmp_path, [*of_one_class, *[Labelled("dog", "d")] * 2], records(), labels=(3,))
    with pytest.raises(DataError, match="The class 'c' has only one text or file"):
        create(base, tmp_path, [Labelled("cat", "c", "one.py")] * 5 + [Labelled("dog", "d")] * 5)
    with pytest.raises(DataError, match="No training text has the class 'm', which the test has"):
        create(base, tmp_path, records(), [Labelled("mat", "m")])
    assert not (tmp_path / "refused").exists()


def test_an_empty_text_is_refused(base, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": text[:1] or "c"}) + "\n" for text in ("cat", "", "dog")))
    with pytest.raises(DataError, match=r"texts.jsonl line 2: the text is empty"):
        classify(CONFIG, base, str(path), None, tmp_path / "refused", TextConsole())


def test_a_text_that_the_tokenizer_lacks_characters_of_is_named_with_its_line(base, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\na cat,c\na Ω,c\na dog,d\n")
    with pytest.raises(DataError, match=r"texts.csv line 3: the character 'Ω'"):
        classify(CONFIG, base, path, None, tmp_path / "refused", TextConsole())


@pytest.mark.parametrize("thing", ["memory", "disk"])
def test_what_the_machine_has_no_room_for_is_refused(base, tmp_path, quick, monkeypatch, thing):
    out = create(base, tmp_path, records())
    if thing == "memory":
        monkeypatch.setattr("npllm.training.memory.memory_left", lambda root: Left(0, "nothing"))
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    with pytest.raises(ResourceError, match="Training needs" if thing == "memory" else "checkpoints need"):
        train_run(out, TextConsole(file=io.StringIO()), STAGE)


def test_other_texts_are_refused(base, tmp_path):
    out = create(base, tmp_path, records())
    file = out.path / "data" / "test.jsonl"
    file.write_text(file.read_text().replace("cat", "bat", 1))
    with pytest.raises(DataError, match=r"test\.jsonl does not have the hash in SHA256SUMS beside it; put back"):
        train_run(out, TextConsole(file=io.StringIO()), STAGE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ()),
        ("labels", (0, 8)),
        ("labels", (32, 8)),
        ("seeds", 1),
        ("scratch_lr", 0.0),
        ("epochs", 0.0),
        ("min_updates", 0),
        ("aux_lm", -0.1),
        ("test_fraction", 1.0),
        ("test_texts", 0),
    ],
)
def test_refusals_about_settings(field, value):
    with pytest.raises(ConfigError, match=rf"classify\.{field} is"):
        ClassifySettings(**{field: value})


def test_a_damaged_curve_is_refused(tmp_path):
    path = tmp_path / "curve.jsonl"
    for content in ("nonsense\n", '{"labels": 8}\n', "[]\n"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"curve.jsonl, line 1, is not a point of the curve .* delete the file"):
            read_curve(path)


def test_the_plot_shows_the_means_their_intervals_and_guessing():
    pytest.importorskip("matplotlib")
    figure = transfer_figure({"pretrained": {8: (0.5, 0.1), 32: (0.75, 0.05)}, "scratch": {8: (0.25, 0.2)}}, 0.125)
    (axes,) = figure.axes
    pretrained, scratch = axes.containers
    assert np.allclose(pretrained.lines[0].get_xydata(), [[8, 0.5], [32, 0.75]])
    assert np.allclose(pretrained.lines[2][0].get_segments(), [[[8, 0.4], [8, 0.6]], [[32, 0.7], [32, 0.8]]])
    assert np.allclose(scratch.lines[0].get_xydata(), [[8, 0.25]])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "32"]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"pretrained", "scratch", "guessing"}
