"""What a pretraining says about itself at its end."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import pretrain_arguments, run, summary, write_text

import npllm
from npllm.runs.metrics import FIELDS
from npllm.runs.run_folder import RunFolder
from npllm.training.evaluation import Evaluation, pair_table_loss, quick_loss
from npllm.training.verdict import LEAST_TEXT, RARE, overfitting, verdict

RNG = np.random.default_rng(0)
TRAIN = SimpleNamespace(tokens=RNG.integers(0, 8, 4000))
VAL = SimpleNamespace(tokens=RNG.integers(0, 8, 500), n_bytes=LEAST_TEXT)
TABLE = pair_table_loss(TRAIN.tokens, VAL.tokens, 8)


def write_losses(folder, **losses) -> RunFolder:
    """A run whose metrics have these validation losses; the key s20 is step 20."""
    rest = dict.fromkeys(FIELDS.keys() - {"step"}, 1)
    lines = [{"step": int(key[1:]), "val_loss": loss, **rest} for key, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunFolder(folder)


def said(folder, *, loss=1.0, train_share=0.9, bits=2.0, train=TRAIN, val=VAL, **losses) -> list[str]:
    """The beginnings of the sentences about a run with this result, beside a gzip of
    2 bits per byte. train_share: the training loss as a share of the validation
    loss."""
    model, result = SimpleNamespace(config=SimpleNamespace(vocab_size=8)), Evaluation(loss, 0.0, bits, 0, 0)
    sentences = verdict(write_losses(folder, **losses), model, train, val, result, train_share * loss, {"gzip": 2.0})
    return [" ".join(sentence.split()[:3]) for sentence in sentences]


FITS = "The model fits"


def test_of_a_good_run_only_the_fit_is_said(tmp_path):
    assert said(tmp_path, loss=TABLE, s10=2.0, s20=1.5, s30=1.54) == [FITS]


@pytest.mark.parametrize(
    ("train_share", "beginning"),
    [
        (0.79, "The model overfits:"),
        (0.81, FITS),
        (0.94, FITS),
        (0.96, "The model underfits:"),
        (1.5, "The model underfits:"),
    ],
)
def test_the_fit_is_the_share_of_the_training_loss(tmp_path, train_share, beginning):
    assert said(tmp_path, train_share=train_share) == [beginning]


@pytest.mark.parametrize(
    ("figures", "beginnings"),
    [
        ({"loss": TABLE + 1e-9}, ["A table of"]),
        ({"bits": 2.0 + 1e-9}, ["gzip, which learns"]),
        ({"loss": TABLE + 1e-9, "bits": 3.0}, ["A table of"]),
        ({"loss": TABLE + 1e-9, "bits": 3.0, "train_share": 0.99}, ["A table of"]),
        ({"loss": 9.0, "bits": 9.0, "s10": 1.0, "s20": 1.06}, ["The model has"]),
        ({"loss": 9.0, "bits": 9.0, "s10": 1.0, "s20": 1.06, "train_share": 0.1}, ["The model has"]),
        ({"loss": 9.0, "bits": 9.0, "train_share": 0.1}, ["The model overfits:"]),
        ({"bits": 3.0, "val": SimpleNamespace(tokens=VAL.tokens, n_bytes=LEAST_TEXT - 1)}, [FITS, "4,095 bytes of"]),
        ({"train": SimpleNamespace(tokens=TRAIN.tokens[: 8 * RARE])}, [FITS]),
        ({"train": SimpleNamespace(tokens=TRAIN.tokens[: 8 * RARE - 1])}, [FITS, "A token of"]),
    ],
)
def test_each_fault_is_named_once(tmp_path, figures, beginnings):
    """A model that has overfitted should not be told to train longer, and no advice
    should stand twice."""
    assert said(tmp_path, **figures) == beginnings


def test_the_loss_may_have_risen_a_little(tmp_path):
    assert overfitting(write_losses(tmp_path, s10=1.0, s20=1.05)) is None
    assert "was 1.00 at step 10 and is 1.06 now" in overfitting(write_losses(tmp_path, s10=1.0, s20=1.06))


def test_a_loss_that_was_not_finite_is_no_loss(tmp_path):
    """JSON has null for it; every comparison with NaN is false."""
    assert overfitting(write_losses(tmp_path, s10=None, s20=1.0, s30=1.0)) is None
    assert "at step 20" in overfitting(write_losses(tmp_path, s10=None, s20=1.0, s30=1.2))


def test_the_best_weights_that_were_kept_are_named(tmp_path, capsys):
    """The text is short: the letters are learnt first, then the text by heart. The
    command that is printed works."""
    text, out = write_text(tmp_path, n_lines=4), tmp_path / "a run"
    settings = {
        "optim__lr": 0.02,
        "train__steps": 120,
        "train__eval_every": 20,
        "data__val_fraction": 0.3,
    }
    assert run(*pretrain_arguments(text, out, model__n_embd=32, batch__size=8, batch__micro_size=8, **settings)) == 0
    [sentence] = [line for line in capsys.readouterr().out.splitlines() if "by heart" in line]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["val_loss"] for record in metrics if "val_loss" in record}
    best = min(losses, key=losses.get)
    assert f"was {losses[best]:.2f} at step {best} and is {losses[120]:.2f} now" in sentence
    command = sentence.partition("npllm ")[2]
    assert command.endswith(" --checkpoint best")
    assert run(*shlex.split(command), "--max_tokens", "5") == 0
    assert f"step-{best:08d}.h5" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_the_end_compares_the_loss_of_as_much_training_text(tmp_path, capsys):
    """It is that of the final weights, on as many windows as validation has."""
    text, out = write_text(tmp_path, n_lines=8), tmp_path / "run"
    words = pretrain_arguments(text, out, optim__lr=0.02, train__steps=60, data__val_fraction=0.3)
    assert run(*words, "--spikes.enabled", "False") == 0
    shown = capsys.readouterr().out
    (model, _), (train, val) = npllm.load(out), RunFolder(out).load_shards()
    figures, T = summary(out), model.config.block_size
    expected = quick_loss(model, train.tokens, n_windows=-(-(len(val.tokens) - 1) // T))
    assert figures["train_loss"] == pytest.approx(expected, rel=1e-6)
    line = f"loss {figures['val_loss']:.4f} nats per token, perplexity {figures['val_perplexity']:.2f}; "
    assert f"{line}loss of as much training text {expected:.4f}" in shown.splitlines()
    assert sum(word in shown for word in ("overfits", "underfits", "fits its text", "A table", "gzip, which")) == 1
