"""`npllm rlhf --overoptimise`: the gold reward as a policy over-optimises the proxy.

Reward models learn from few preferences and from many. PPO maximises their rewards, with
a penalty on the KL divergence and without one, and best-of-n picks the responses that
they score highest. The runs lie in the folder `overoptimise` of the pipeline.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np

from npllm.data.records import Preference, read_preferences
from npllm.errors import ConfigError
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import PREFERENCE_SUBSET
from npllm.report.reward_plot import Series
from npllm.rlhf.pipeline import Pipeline
from npllm.rlhf.reward import encode_pairs, evaluate_reward
from npllm.rlhf.reward_curves import Curve, best_of_divergence, best_of_mean, distance_gold_proxy, doubled, pooled
from npllm.rlhf.sequences import rewards_of
from npllm.runs.inputs import checked_records
from npllm.runs.run_folder import load

PAIRS = (64, 256, 1024, 4096)  # preferences that a reward model learns from
PENALTIES = (0.02, 0.1, 0.3)  # kl_coef, besides 0, with the fewest pairs
OVERTIME = 2  # times the updates of the recipe
MOST_OF = 64  # the largest n of best-of-n
HEADINGS = ("method", "pairs", "coef", "acc", "gold", "proxy", "KL", "alpha", "beta", "R²")


def study_overoptimisation(pipelines: Sequence[Pipeline]) -> list[tuple[Curve, ...]]:
    """Run the study below each of the finished pipelines.

    Returns a tuple for each method, which holds its curve in each pipeline. Finished runs
    are not repeated. Raises ConfigError where there are too few preferences.
    """
    fewest = min(len(preferences_of(pipeline, "train")) for pipeline in pipelines)
    sizes = [size for size in PAIRS if size <= fewest]
    if not sizes:
        raise ConfigError(f"--overoptimise needs {PAIRS[0]} preferences to learn from, but there are {fewest}.")
    return list(zip(*(overoptimise(pipeline, sizes) for pipeline in pipelines), strict=True))


def overoptimise(pipeline: Pipeline, sizes: Sequence[int]) -> list[Curve]:
    """The curves of one pipeline: of PPO in every setting, then of best-of-n.

    PPO has the settings of the recipe, except that it is OVERTIME times as long and that
    its penalty is fixed. The reward models learn from nested subsets of the training pairs
    of the pipeline's own reward model, and are tested on its held-out pairs.
    """
    recipe, records, held_out = pipeline.task.recipe, preferences_of(pipeline, "train"), preferences_of(pipeline, "val")
    order = random_permutation(len(records), seed=pipeline.seed, stream=PREFERENCE_SUBSET)
    for size in sizes:
        pipeline.learn_reward(reward_name(size), recipe.reward, [records[i] for i in order[:size]])
    plans = [(size, 0.0) for size in sizes] + [(sizes[0], penalty) for penalty in PENALTIES]
    for size, kl_coef in plans:
        config = replace(recipe.ppo, ppo=replace(recipe.ppo.ppo, kl_coef=kl_coef, kl_target=0.0))
        pipeline.improve(
            policy_name(size, kl_coef), config.with_steps(OVERTIME * config.train.steps), reward_name(size)
        )
    accuracies = {size: accuracy_of(pipeline, size, held_out) for size in sizes}
    curves = [ppo_curve(pipeline, size, kl_coef, accuracies[size]) for size, kl_coef in plans]
    return curves + best_of_curves(pipeline, accuracies)


def preferences_of(pipeline: Pipeline, side: Literal["train", "val"]) -> list[Preference]:
    """The training pairs or the held-out pairs of the pipeline's own reward model."""
    return read_preferences(checked_records(pipeline.run_folder("reward"), side))


def reward_name(pairs: int) -> str:
    """The stage of the reward model that learns from so many preferences."""
    return f"overoptimise/reward-{pairs}"


def policy_name(pairs: int, kl_coef: float) -> str:
    """The stage of the policy that pleases it."""
    return f"overoptimise/ppo-{pairs}-kl-{kl_coef:g}"


def accuracy_of(pipeline: Pipeline, pairs: int, held_out: Sequence[Preference]) -> float:
    """Share of the held-out pairs that a reward model ranks rightly."""
    model, tokenizer = load(pipeline.path / reward_name(pairs))
    return evaluate_reward(model, encode_pairs(held_out, tokenizer, model.config.block_size)).accuracy


def ppo_curve(pipeline: Pipeline, pairs: int, kl_coef: float, accuracy: float) -> Curve:
    """From the log of a run, a point for each rollout."""
    return Curve("ppo", pairs, kl_coef, accuracy, *distance_gold_proxy(pipeline.rollouts(policy_name(pairs, kl_coef))))


def best_of_curves(pipeline: Pipeline, accuracies: dict[int, float]) -> list[Curve]:
    """A curve of best-of-n for each reward model, with n = 1, 2, 4 ... MOST_OF.

    All curves use the same MOST_OF responses to each prompt. Best-of-n picks the response
    that PPO would reward most; the proxy is calibrated as in PPO (scores.py).
    """
    judge, reference = pipeline.new_judge(), load(pipeline.path / "sft")[0]
    rounds, gold = judge.ask_often(reference, MOST_OF)
    sizes = doubled(MOST_OF)
    distance = np.array([sqrt(best_of_divergence(n)) for n in sizes])
    curves = []
    for pairs, accuracy in accuracies.items():
        model, _ = load(pipeline.path / reward_name(pairs))
        raw_scores = np.stack([rewards_of(model, sequences) for _, sequences in rounds])  # (N, prompts)
        scores = judge.scores(raw_scores, rounds)
        means = [[best_of_mean(values, scores.rewarded, n) for n in sizes] for values in (gold, scores.proxy)]
        curves.append(Curve("best of n", pairs, 0.0, accuracy, distance, *map(np.array, means)))
    return curves


@dataclass(frozen=True)
class Figures:
    """One method's, means over the seeds: gold of the first rollout, of the best one and of the last.

    alpha, beta, r_squared: the law that gold follows where nothing holds the policy back (see reward_curves), and how
    much of gold's variance it explains; None with a penalty.
    """

    method: str
    pairs: int
    kl_coef: float
    reward_accuracy: float
    gold_first: float
    gold_best: float
    gold_last: float
    proxy_last: float
    kl_last: float
    alpha: float | None
    beta: float | None
    r_squared: float | None

    def row(self) -> tuple[str, ...]:
        """The cells below HEADINGS."""
        gold = f"{self.gold_first:.2f} {self.gold_best:.2f} {self.gold_last:.2f}"
        measured = f"{self.reward_accuracy:.0%}", gold, f"{self.proxy_last:.2f}", f"{self.kl_last:.2f}"
        law = ("" if value is None else f"{value:.2f}" for value in (self.alpha, self.beta, self.r_squared))
        return self.method, f"{self.pairs:,}", f"{self.kl_coef:g}" if self.method == "ppo" else "", *measured, *law


def figures_of(same: Sequence[Curve]) -> Figures:
    """One method on several seeds."""

    def mean(of: Callable[[Curve], float]) -> float:
        return float(np.mean([of(curve) for curve in same]))

    alpha, beta, r_squared = (None, None, None) if same[0].kl_coef else pooled(same).fit()
    return Figures(
        method=same[0].method,
        pairs=same[0].pairs,
        kl_coef=same[0].kl_coef,
        reward_accuracy=mean(lambda curve: curve.accuracy),
        gold_first=mean(lambda curve: curve.gold[0]),
        gold_best=mean(lambda curve: curve.gold.max()),
        gold_last=mean(lambda curve: curve.gold[-1]),
        proxy_last=mean(lambda curve: curve.proxy[-1]),
        kl_last=mean(lambda curve: curve.distance[-1] ** 2),
        alpha=alpha,
        beta=beta,
        r_squared=r_squared,
    )


def panels(curves: Sequence[Curve]) -> dict[str, list[Series]]:
    """What the picture shows: gold and proxy of each method, and the law that gold follows."""
    fewest = min(curve.pairs for curve in curves)
    ppo = [curve for curve in curves if curve.method == "ppo"]

    def series(of: Iterable[Curve], label: Callable[[Curve], str]) -> list[Series]:
        return [
            Series(label(curve), curve.distance, curve.gold, curve.proxy, None if curve.kl_coef else curve.fitted())
            for curve in of
        ]

    def pairs(curve: Curve) -> str:
        return f"{curve.pairs:,} pairs"

    return {
        "PPO without a penalty": series((curve for curve in ppo if not curve.kl_coef), pairs),
        f"PPO, {fewest} pairs": series(
            (c for c in ppo if c.pairs == fewest), lambda curve: f"kl_coef {curve.kl_coef:g}"
        ),
        "best of n": series((curve for curve in curves if curve.method != "ppo"), pairs),
    }


def study_section(table: Sequence[str]) -> list[str]:
    """The part of the report on over-optimisation."""
    return [
        "## Over-optimisation",
        "",
        "PPO with and without a penalty on the KL (coef: what a nat costs), and best-of-n, with reward models that",
        "learnt from so many pairs and rank so many of the same held-out ones rightly (acc).",
        "Gold: at first, at best, at last.",
        "alpha, beta: of the law that the lines in the plot follow, with d = √KL: gold grows by d (alpha - beta log d)",
        "with PPO without a penalty, and by d (alpha - beta d) with best-of-n (Gao, Schulman & Hilton, 2022).",
        "R²: how much of gold's variance it explains; the law of PPO does not know that gold cannot fall below 0.",
        "",
        *table,
        "",
        "![gold and proxy with reward models of few pairs and many](reward_hacking.png)",
        "",
    ]
