r"""Curves of gold and proxy reward in over-optimisation, and the law of gold reward.

A policy that maximises the proxy moves away from the fine-tuned model. Its distance d
is the root of its KL divergence from the fine-tuned model. R is the gold reward minus
that of the fine-tuned model. The law is

$$
R(d) = d (\alpha - \beta \log d)          % of reinforcement learning
R(d) = d (\alpha - \beta d)               % of best-of-n
$$

A large $\alpha$ means that gold grows fast with the distance, a large $\beta$ that it
soon falls again because the proxy is wrong.

Source: Gao, Schulman & Hilton, "Scaling laws for reward model overoptimization", 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, log

import numpy as np

TINY = 1e-12  # a lower bound of d in log d, so that d log d is 0 at d = 0


@dataclass(frozen=True)
class Curve:
    """Gold and proxy of one method against the distance from the fine-tuned model.

    pairs: the number of preferences that the reward model learnt from. accuracy: the
    share of held-out pairs that the reward model ranks rightly. distance: (k,), d, with
    the KL divergence in nats per response. gold, proxy: (k,), mean rewards of the
    responses there. The first point is the fine-tuned model, at distance 0. If there
    are several seeds, their points are concatenated.
    """

    method: str  # "ppo" or "best of n"
    pairs: int
    kl_coef: float
    accuracy: float
    distance: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray

    @property
    def start(self) -> float:
        """The gold of the fine-tuned model: the mean at the smallest distance."""
        return float(self.gold[self.distance == self.distance.min()].mean())

    def law(self, distance: np.ndarray) -> np.ndarray:
        r"""Return X, (k, 2), for which $X (\alpha, \beta)$ is R at distances, (k,)."""
        growth = np.log(np.maximum(distance, TINY)) if self.method == "ppo" else distance
        return np.stack([distance, -distance * growth], axis=1)

    def fit(self) -> tuple[float, float, float]:
        r"""Return $\alpha$, $\beta$ and R² of the law, fitted by least squares.

        R² is the share of the variance of the gold reward that the law explains.
        """
        grown = self.gold - self.start
        coefficients = np.linalg.lstsq(self.law(self.distance), grown, rcond=None)[0]
        rest = grown - self.law(self.distance) @ coefficients
        return *map(float, coefficients), 1.0 - float((rest**2).mean() / grown.var())

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return 200 distances, and the gold reward that the fitted law has there."""
        distance = np.linspace(0.0, self.distance.max(), 200)
        return distance, self.start + self.law(distance) @ self.fit()[:2]


def distance_gold_proxy(rollouts: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distance d, gold and proxy, (k,) each.

    rollouts: the figures of k rollouts, as in metrics.jsonl.
    """
    kl, gold, proxy = (
        np.array([line[f"objective/{name}"] for line in rollouts]) for name in ("exact_kl", "gold", "proxy")
    )
    return np.sqrt(np.maximum(kl, 0.0)), gold, proxy


def best_of_divergence(n: int) -> float:
    """Return the upper bound log n - (n - 1) / n on the KL of best-of-n, in nats.

    Source: Beirami et al., "Theoretical guarantees on the best-of-n alignment policy",
    2024.
    """
    return log(n) - (n - 1) / n


def doubled(most: int) -> list[int]:
    """Return 1, 2, 4 ... below `most`, and then `most` itself."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + [most]


def best_of_mean(values: np.ndarray, proxy: np.ndarray, n: int) -> float:
    """Return the mean value of best-of-n, which picks the highest proxy of n responses.

    It is an unbiased estimate, from all N responses to each prompt, at least n. If they
    are sorted by proxy, the i-th of N is the best in C(i - 1, n - 1) of the C(N, n)
    subsets of n responses. Among responses with equal proxy each is chosen equally
    often, so each counts with their mean value.

    values, proxy: (N, prompts).

    Source: Nakano et al., "WebGPT", 2021, appendix I.
    """
    N = len(proxy)
    weights = np.array([comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)])
    order = proxy.argsort(axis=0, kind="stable")
    equal = proxy[:, None] == proxy  # (N, N, prompts)
    values = (equal * values).sum(axis=1) / equal.sum(axis=1)
    return float((weights[:, None] * np.take_along_axis(values, order, axis=0)).sum(axis=0).mean())


def pooled(same: Sequence[Curve]) -> Curve:
    """Return one curve for the same setting in several pipelines.

    The points are concatenated, the accuracy is the mean.
    """
    arrays = {name: np.concatenate([getattr(curve, name) for curve in same]) for name in ("distance", "gold", "proxy")}
    return replace(same[0], accuracy=float(np.mean([curve.accuracy for curve in same])), **arrays)
