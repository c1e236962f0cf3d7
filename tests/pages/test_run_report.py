"""The report of every stage, through the command line, and its numbers."""

import json
import re
from functools import cache
from html import unescape

import numpy as np
import pytest
from small_runs import content, pretrain_arguments, refused, run, stop_after, summary, write_text
from stage_runs import DEMONSTRATIONS, LABELLED, PREFERENCES, PROMPTS, ROLLOUT, pretrained, stage_arguments, write_jsonl

import npllm
from npllm.data.shards import read_shard
from npllm.pages import speed
from npllm.pages.learnt.measure import measure
from npllm.pages.learnt.section import learnt_section
from npllm.pages.learnt.windows import Windows, of_shard
from npllm.pages.run_report import verdicts
from npllm.pages.values import shown
from npllm.runs.run_folder import RunFolder

MOST_BYTES = 5 << 20
STAGES = {
    "sft": ("pretrained", {"data": "demonstrations.jsonl"}),
    "classify": ("pretrained", {"data": "texts.jsonl", "classify__labels": 2, "classify__seeds": 2}),
    "reward": ("sft", {"data": "preferences.jsonl"}),
    "dpo": ("sft", {"data": "preferences.jsonl"}),
    "ppo": ("sft", {"prompts": "prompts.jsonl", "reward": "reward", **ROLLOUT}),
}
PICTURES = {  # what the page of each stage must show
    "pretrained": ["Loss", "Gradient norm", "Learning rate", "Bits per byte"],
    "sft": ["Loss", "Predicted tokens in a batch"],
    "classify": ["Accuracy", "Language-model loss", "Accuracy on the test texts"],
    "reward": ["Accuracy", "Margin", "Accuracy by the confidence"],
    "dpo": ["Accuracy"],
    "ppo": ["Reward of the rollouts", "KL divergence", "Length", "Clipped", "Explained variance"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a tiny run of each stage, named after it."""
    folder = tmp_path_factory.mktemp("runs")
    for name, records in (
        ("demonstrations", DEMONSTRATIONS),
        ("preferences", PREFERENCES),
        ("prompts", PROMPTS),
        ("texts", LABELLED),
    ):
        write_jsonl(folder / f"{name}.jsonl", records)
    pretrained(folder)
    for stage, (base, changes) in STAGES.items():
        files = {key: folder / changes[key] for key in ("data", "prompts", "reward") if key in changes}
        assert run(*stage_arguments(stage, folder / base, folder / stage, **changes | files)) == 0
    return folder


@pytest.fixture(scope="module")
def page(runs):
    """The page of a run in the folder, by its name; each is made once."""
    return cache(lambda name: page_of(runs / name, "--out", runs / f"{name}.html"))


def page_of(*arguments) -> str:
    """The page that `npllm report` writes, with its entities as text."""
    out = arguments[arguments.index("--out") + 1]
    assert run("report", *arguments) == 0
    text = out.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    return unescape(text)


@pytest.mark.parametrize("name", PICTURES)
def test_the_report_of_a_stage_shows_its_curves_and_figures(runs, page, name):
    page = page(name)
    for title in PICTURES[name]:
        assert re.search(rf"<figcaption>{title}", page), title
    for field, value in summary(runs / name).items():
        if not isinstance(value, list | dict):
            assert f"{field}</th><td>{shown(value)}</td>" in page
    assert "Not shown" not in page
    assert ('id="learnt"' in page) == (name in ("pretrained", "sft"))
    assert ('id="answers"' in page) == (name in ("sft", "dpo", "ppo"))
    anchors = set(re.findall(r'href="#([\w-]+)"', page))
    assert anchors <= set(re.findall(r'id="([\w-]+)"', page))


def test_the_default_place_is_in_the_folder_of_the_run(runs, page):
    """The page is the same each time, and the run's own files stay as they are."""
    before = content(runs / "sft")
    assert run("report", runs / "sft") == 0
    assert unescape((runs / "sft" / "report.html").read_text(encoding="utf-8")) == page("sft")
    (runs / "sft" / "report.html").unlink()
    assert content(runs / "sft") == before


def test_the_levels_of_the_compressors_and_the_curve_are_those_of_the_run(runs, page):
    """The words of the picture say where the curves begin and end."""
    page = page("pretrained")
    words = re.search(r'aria-label="(Bits per byte[^"]*)"', page)[1]
    figures, records = summary(runs / "pretrained"), npllm.Run(runs / "pretrained").metrics
    for name in ("gzip", "bz2", "xz"):
        assert f"{name} from {figures[f'{name}_bits_per_byte']:.4g} to" in words
    shard = read_shard(runs / "pretrained" / "data" / "train.h5")
    bits = records["loss"] * len(shard.tokens) / shard.n_bytes / np.log(2)
    assert f"training, each update from {bits[0]:.4g} to {bits[-1]:.4g}" in words


@pytest.fixture
def peak(runs, monkeypatch):
    """Make the machine so fast that the tiny run reached 37 % of its peak."""
    metrics, (model, _) = npllm.Run(runs / "pretrained").metrics, npllm.load(runs / "pretrained")
    reached = np.median(metrics["tokens_per_s"]) * model.config.flops_per_token(model.config.block_size)
    monkeypatch.setattr(speed, "product_peak", lambda dtype: reached / 0.37)
    return reached / 0.37


def test_the_share_of_the_peak_is_that_of_the_run(runs, tmp_path, peak):
    """Fails if the work, the speed or the peak is another one."""
    page = page_of(runs / "pretrained", "--out", tmp_path / "page.html")
    tokens_per_s = np.median(npllm.Run(runs / "pretrained").metrics["tokens_per_s"])
    assert f"Half of the updates ran at {tokens_per_s:,.0f} tokens per second or more" in page
    assert f"That is 37 % of the machine's peak, the {peak / 1e9:,.1f} GFLOP/s" in page


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cpu_model", lambda: "a fast one", "the run was made on another processor"),
        ("product_peak", lambda dtype: 1.0, "so it is busy"),
    ],
)
def test_a_share_of_the_peak_that_is_not_known_is_not_shown(runs, tmp_path, peak, monkeypatch, name, value, reason):
    monkeypatch.setattr(speed, name, value)
    page = page_of(runs / "pretrained", "--out", tmp_path / "page.html")
    assert reason in page
    assert "% of the machine's peak" not in page


def test_the_verdict_is_the_one_that_training_printed(tmp_path, capsys):
    base = pretrained(tmp_path)
    printed = capsys.readouterr().out
    assert base.is_dir()
    files = type("Files", (), {"stage": "pretrain", "summary": summary(base)})
    found = verdicts(RunFolder(base), files)
    assert found
    assert all(sentence in printed for sentence in found)
    page = page_of(base, "--out", tmp_path / "page.html")
    assert all(f"<p>{sentence}</p>" in page for sentence in found)


def test_samples_of_the_evaluations_are_on_the_page(tmp_path):
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, train__eval_every=2)) == 0
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [2, 4, 6]
    page = page_of(out, "--out", tmp_path / "page.html")
    for sample in samples:
        assert f"After {sample['step']} updates" in page
        assert f'<span class="prompt">{sample["prompt"]}</span>{sample["text"]}</pre>' in page


def test_measures_on_the_page_are_those_of_the_model(runs, page):
    """The pages's numbers come from the same functions that anyone may call."""
    page = page("pretrained")
    model, tokenizer = npllm.load(runs / "pretrained")
    shard = read_shard(runs / "pretrained" / "data" / "val.h5")
    windows = Windows(of_shard(shard), tokenizer, model.config)
    found = measure(model, windows, None, model.seed)
    row = "".join(f'<td class="number">{loss:.2f}</td>' for loss in found.lens)
    assert f'<th scope="row">trained</th>{row}' in page
    assert found.lens[-1] == pytest.approx(model.loss(windows.x, windows.y), rel=1e-4)
    previous = found.heads["previous token"]
    assert f'<td class="number">{previous.scores.max():.3f}</td>' in page
    assert f'<td class="number">{previous.chance:.3f}</td>' in page


def test_the_page_says_what_is_not_there(runs, page):
    page = page("pretrained")
    section = learnt_section(RunFolder(runs / "pretrained"))
    absent = [kind.name for kind in section["kinds"] if not kind.found]
    assert "induction" in absent  # one layer cannot have such a head
    for name in absent:
        assert f"There is no head of the kind “{name}”" in page
    assert "<code>python -m benchmarks heads</code> measures from which size" in page
    assert "No probe for “inside a string or comment”" in page


def test_an_unfinished_run_has_a_report(tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop_after(monkeypatch, 3)
    assert run(*pretrain_arguments(write_text(tmp_path), out)) == 130
    page = page_of(out, "--out", tmp_path / "page.html")
    assert "Not finished: 3 updates of 6." in page
    assert 'id="learnt"' in page


def test_a_folder_that_is_no_run_ends_in_one_sentence(tmp_path, capsys):
    assert "is not a run (config.toml is missing)" in refused(capsys, "report", tmp_path, exit_code=3)
    assert "is not a folder" in refused(capsys, "report", tmp_path / "nowhere", exit_code=3)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_compared_by_what_differs(runs, tmp_path):
    other = tmp_path / "longer"
    assert (
        run(*stage_arguments("sft", runs / "pretrained", other, data=runs / "demonstrations.jsonl", train__seed=5)) == 0
    )
    page = page_of(runs / "sft", other, "--out", tmp_path / "page.html")
    assert "Comparison of 2 runs" in page
    words = re.search(r'aria-label="(Validation loss:[^"]*)"', page)[1]
    for path in (runs / "sft", other):
        losses = npllm.Run(path).metrics["val_loss"]
        losses = losses[np.isfinite(losses)]
        assert f"{path.name} from {losses[0]:.4g} to {losses[-1]:.4g}" in words
    differing = page[page.index('id="differences"') :]
    assert re.findall(r'<th scope="row">([\w.]+)</th>', differing) == ["train.seed"]
    assert "<td>0</td><td>5</td>" in differing
    digest = summary(other)["params_sha256"]
    assert f"<td>{digest}</td>" in page


def test_runs_of_one_name_are_numbered_and_other_stages_may_be_compared(runs, tmp_path):
    page = page_of(runs / "ppo", runs / "ppo", runs / "pretrained", "--out", tmp_path / "page.html")
    assert "ppo (1)" in page
    assert "ppo (2)" in page
    assert re.search("<figcaption>Reward of the rollouts: reward model", page)
