"""`npllm rlhf --overoptimise`: what over-optimising the proxy does to the gold reward.

The proxy is a reward model. Several reward models learn from different numbers of
preferences. PPO maximises their rewards, with and without a penalty on the KL
divergence. Best-of-n picks the responses that they score highest. The runs are in the
folder `overoptimise` of each pipeline.
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

PAIRS = (64, 256, 1024, 4096)  # numbers of preferences that the reward models learn from
PENALTIES = (0.02, 0.1, 0.3)  # values of kl_coef besides 0, with the smallest number of pairs
OVERTIME = 2  # number of updates, in multiples of the recipe's
MOST_OF = 64  # the largest n of best-of-n
HEADINGS = ("method", "pairs", "coef", "acc", "gold", "proxy", "KL", "alpha", "beta", "R²")


def study_overoptimisation(pipelines: Sequence[Pipeline]) -> list[tuple[Curve, ...]]:
    """Run the study in the folder of each finished pipeline, and return its curves.

    The list has a tuple for each method, with one curve per pipeline. Finished runs are
    not repeated. Raises ConfigError if a pipeline has fewer than PAIRS[0] preferences.
    """
    fewest = min(len(preferences_of(pipeline, "train")) for pipeline in pipelines)
    sizes = [size for size in PAIRS if size <= fewest]
    if not sizes:
        raise ConfigError(
            f"--overoptimise needs {PAIRS[0]} preferences to learn from, and there are {fewest}; give the task more "
            "prompts or a larger n_pairs."
        )
    return list(zip(*(overoptimise(pipeline, sizes) for pipeline in pipelines), strict=True))


def overoptimise(pipeline: Pipeline, sizes: Sequence[int]) -> list[Curve]:
    """Return the curves of one pipeline: PPO in every setting, then best-of-n.

    sizes: the numbers of pairs that the reward models learn from. Each set of pairs is
    a subset of the next larger one. All are subsets of the training pairs of the
    pipeline's own reward model. Its held-out pairs test all reward models. PPO has the
    settings of the recipe, except that it makes OVERTIME times as many updates and its
    kl_coef is fixed.
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
    """Return the training or the held-out pairs of the pipeline's own reward model."""
    return read_preferences(checked_records(pipeline.run_folder("reward"), side))


def reward_name(pairs: int) -> str:
    """Return the stage name of the reward model for this number of pairs."""
    return f"overoptimise/reward-{pairs}"


def policy_name(pairs: int, kl_coef: float) -> str:
    """Return the stage name of the policy that PPO trains with that reward model."""
    return f"overoptimise/ppo-{pairs}-kl-{kl_coef:g}"


def accuracy_of(pipeline: Pipeline, pairs: int, held_out: Sequence[Preference]) -> float:
    """Return the share of the held-out pairs that a reward model ranks rightly.

    pairs: the number of preferences that the reward model learnt from.
    """
    model, tokenizer = load(pipeline.path / reward_name(pairs))
    return evaluate_reward(model, encode_pairs(held_out, tokenizer, model.config.block_size)).accuracy


def ppo_curve(pipeline: Pipeline, pairs: int, kl_coef: float, accuracy: float) -> Curve:
    """Return the curve of a PPO run, with a point for each rollout in its log."""
    return Curve("ppo", pairs, kl_coef, accuracy, *distance_gold_proxy(pipeline.rollouts(policy_name(pairs, kl_coef))))


def best_of_curves(pipeline: Pipeline, accuracies: dict[int, float]) -> list[Curve]:
    """Return the best-of-n curve of each reward model, for n = 1, 2, 4 ... MOST_OF.

    accuracies: from the number of pairs of a reward model to its accuracy. All curves
    use the same MOST_OF responses to each prompt. Best-of-n picks the response that PPO
    would reward most. The proxy is calibrated as in PPO (scores.py).
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
    """The figures of one method, averaged over the seeds.

    gold_first, gold_best, gold_last: the gold reward of the first rollout, of the best
    one and of the last one; with best-of-n, of the smallest n, the best n and the
    largest n. proxy_last, kl_last: likewise of the last. alpha, beta: of the law that
    was fitted to gold over all seeds (see reward_curves.py). r_squared: the share of
    gold's variance that the law explains. These three are None if PPO had a penalty.
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
        """Return the cells of a table row, in the order of HEADINGS."""
        gold = f"{self.gold_first:.2f} {self.gold_best:.2f} {self.gold_last:.2f}"
        measured = f"{self.reward_accuracy:.0%}", gold, f"{self.proxy_last:.2f}", f"{self.kl_last:.2f}"
        law = ("" if value is None else f"{value:.2f}" for value in (self.alpha, self.beta, self.r_squared))
        return self.method, f"{self.pairs:,}", f"{self.kl_coef:g}" if self.method == "ppo" else "", *measured, *law


def figures_of(same: Sequence[Curve]) -> Figures:
    """Return the figures of one method from its curves, one for each seed."""

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
    """Return the panels of the plot: title and series of each.

    A series has the gold and the proxy reward of one curve and, without a penalty, the
    fitted law.
    """
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
    """Return the report's section on over-optimisation. table: lines of its table."""
    return [
        "## Over-optimisation",
        "",
        "pairs: how many preferences the reward model learnt from. coef: what PPO pays for a nat of KL divergence.",
        "acc: the share of the same held-out pairs that the reward model ranks rightly.",
        "gold: the mean gold reward at first, at best and at last. proxy, KL: at last.",
        "alpha, beta: of the law that the lines in the plot show. With d = √KL, gold grows by d (alpha - beta log d)",
        "with PPO without a penalty, and by d (alpha - beta d) with best-of-n (Gao, Schulman & Hilton, 2022).",
        "R²: the share of gold's variance that the law explains. The law of PPO ignores that gold cannot fall below 0.",
        "",
        *table,
        "",
        "![gold and proxy with reward models of few pairs and many](reward_hacking.png)",
        "",
    ]
