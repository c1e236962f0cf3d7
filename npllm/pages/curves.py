"""The curves of a run: which columns of metrics.jsonl stand in which picture."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np

from npllm.pages.columns import Columns, thinned
from npllm.pages.pictures import line_chart

STEP = "updates made"
FARTHEST = 1e12  # a value beyond it is a gap: no axis can show it beside others
FLAT = 1e-6  # a curve whose span is below this share of its values is drawn as a level


class Picture(NamedTuple):
    """What one picture shows. columns: of metrics.jsonl -> name of the curve."""

    title: str
    unit: str
    columns: Mapping[str, str]


class Chart(NamedTuple):
    """A drawn picture. picture: HTML."""

    title: str
    picture: Any


EVERY_RUN = (
    Picture("Gradient norm before clipping", "norm", {"grad_norm": "gradient norm"}),
    Picture("Learning rate", "", {"lr": "learning rate"}),
    Picture("Batch", "sequences", {"batch": "sequences"}),
    Picture("Speed", "tokens per second", {"tokens_per_s": "tokens per second"}),
)
JUDGED = (
    Picture("Accuracy on the training batches", "share", {"accuracy": "accuracy"}),
    Picture("Margin of the chosen responses", "score", {"margin": "margin"}),
)
OF_STAGE: dict[str, Sequence[Picture]] = {
    "sft": (Picture("Predicted tokens in a batch", "tokens", {"n_targets": "targets"}),),
    "reward": JUDGED,
    "dpo": JUDGED,
    "classify": (
        JUDGED[0],
        Picture("Language-model loss beside the classes", "nats per token", {"lm_loss": "loss"}),
    ),
    "ppo": (
        Picture(
            "Reward of the rollouts",
            "reward",
            {
                "objective/score": "score that is optimised",
                "objective/proxy": "reward model",
                "objective/gold": "gold reward",
                "objective/rlhf_reward": "score minus the KL penalty",
            },
        ),
        Picture(
            "KL divergence from the first policy",
            "nats per response",
            {"objective/kl": "estimate k1", "objective/exact_kl": "exact at each token"},
        ),
        Picture("KL coefficient", "beta", {"objective/kl_coef": "coefficient"}),
        Picture("Length of the responses", "tokens", {"rollout/length": "tokens"}),
        Picture("Responses that ended by themselves", "share", {"rollout/stop_rate": "share"}),
        Picture("Clipped tokens", "share", {"policy/clip_frac": "policy", "value/clip_frac": "value"}),
        Picture("Explained variance of the values", "", {"value/explained_variance": "explained variance"}),
        Picture("Entropy", "nats", {"policy/entropy": "per token", "objective/entropy": "per response"}),
        Picture("KL divergence of an update", "nats per token", {"policy/approx_kl": "estimate k3"}),
        Picture("Probability ratio", "", {"policy/ratio_mean": "mean", "policy/ratio_var": "variance"}),
        Picture("Parts of the loss", "", {"policy/loss": "policy", "value/loss": "value"}),
        Picture("Mean value", "", {"value/mean": "mean value"}),
    ),
}
LOSS_UNITS = {"pretrain": "nats per token", "sft": "nats per token", "reward": "nats per pair", "dpo": "nats per pair"}
SHOWN_ELSEWHERE = {"step", "tokens", "seconds", "loss", "val_loss"}


def charts(stage: str, columns: Columns, spikes: Sequence[int]) -> list[Chart]:
    """The pictures of a run, without its loss in bits per byte.

    spikes: the steps of its loss spikes. A column that no picture knows has a picture
    of its own.
    """
    loss = Picture("Loss", LOSS_UNITS.get(stage, ""), {"loss": "training, each update", "val_loss": "validation"})
    pictures = [*OF_STAGE.get(stage, ()), *EVERY_RUN]
    known = SHOWN_ELSEWHERE | {name for picture in pictures for name in picture.columns}
    others = [Picture(name, "", {name: name}) for name in columns.names if name not in known]
    marked = {"loss", "grad_norm"}
    drawn = [
        chart(picture, columns, spikes if marked & picture.columns.keys() else ())
        for picture in (loss, *pictures, *others)
    ]
    return [each for each in drawn if each is not None]


def chart(picture: Picture, columns: Columns, spikes: Sequence[int] = ()) -> Chart | None:
    """A picture of the columns that a log has; None where it has none of them."""
    series = {name: thinned(*curve(columns, column)) for column, name in picture.columns.items() if column in columns}
    if not any(np.isfinite(y).any() for _, y in series.values()):
        return None
    if spikes:
        series["loss spike"] = _marks(spikes, series.values())
    return Chart(picture.title, line_chart(series, picture.title, x_title=STEP, y_title=picture.unit))


def bits_chart(
    columns: Columns, tokens_per_byte: Mapping[str, float], compressors: Mapping[str, float]
) -> Chart | None:
    """Bits per byte of a language model beside the levels of compressors.

    tokens_per_byte: of the training and of the validation text, by column. compressors:
    name -> bits per byte of the validation text.
    """
    names = {"loss": "training, each update", "val_loss": "validation"}
    series = {}
    for column, per_byte in tokens_per_byte.items():
        if column in columns:
            x, y = thinned(*curve(columns, column))
            series[names[column]] = x, y * per_byte / log(2)
    if not any(np.isfinite(y).any() for _, y in series.values()):
        return None
    ends = np.array(
        [min(x.min() for x, _ in series.values() if len(x)), max(x.max() for x, _ in series.values() if len(x))]
    )
    series |= {name: (ends, np.full(2, bits)) for name, bits in compressors.items()}
    title = "Bits per byte, and compressors on the validation text"
    return Chart(title, line_chart(series, title, x_title=STEP, y_title="bits per byte"))


def curve(columns: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps of the lines that have a column, and its values; a gap is NaN."""
    x, y = columns["step"], columns[name]
    there = ~np.isnan(y) & (np.abs(x) < FARTHEST)
    x, y = x[there], np.where(np.abs(y[there]) < FARTHEST, y[there], np.nan)
    good = y[np.isfinite(y)]
    if len(good) and np.ptp(good) < FLAT * np.abs(good).max():
        y = np.where(np.isfinite(y), good[0], np.nan)
    return x, y


def _marks(spikes: Sequence[int], curves: Any) -> tuple[np.ndarray, np.ndarray]:
    """A vertical line at each spike, as one series with gaps."""
    values = np.concatenate([y[np.isfinite(y)] for _, y in curves])
    shown = thinned(np.asarray(spikes, float), np.asarray(spikes, float))[0]
    x = np.repeat(shown, 3)
    return x, np.tile([values.min(), values.max(), np.nan], len(shown))
