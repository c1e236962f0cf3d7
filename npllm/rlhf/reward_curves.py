"""Gold and proxy reward along the way that a policy goes to please a reward model, and the law that gold follows.

With d = sqrt(KL from the fine-tuned model) and R = gold - gold of the fine-tuned model,

    R_rl(d) = d (alpha - beta log d)         R_best_of_n(d) = d (alpha - beta d)

alpha says how much the reward model is worth, beta how much of it is an illusion.
(Gao, Schulman & Hilton, "Scaling laws for reward model overoptimization", 2022.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, log

import numpy as np

TINY = 1e-12  # d log d is 0 at d = 0


@dataclass(frozen=True)
class Curve:
    """How gold and proxy went as one method moved away from the fine-tuned model.

    distance: sqrt(KL), KL in nats per response. gold, proxy: means of responses. All (k,), from the fine-tuned model at
    distance 0 on; of several seeds one after the other. accuracy: of the reward model on held-out pairs.
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
        """Gold of the fine-tuned model."""
        return float(self.gold[self.distance == self.distance.min()].mean())

    def law(self, distance: np.ndarray) -> np.ndarray:
        """(k, 2): R at these distances is this times (alpha, beta)."""
        growth = np.log(np.maximum(distance, TINY)) if self.method == "ppo" else distance
        return np.stack([distance, -distance * growth], axis=1)

    def fit(self) -> tuple[float, float, float]:
        """alpha and beta of the law by least squares, and the share of gold's variance that it explains."""
        grown = self.gold - self.start
        coefficients = np.linalg.lstsq(self.law(self.distance), grown, rcond=None)[0]
        rest = grown - self.law(self.distance) @ coefficients
        return *map(float, coefficients), 1.0 - float((rest**2).mean() / grown.var())

    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances, and the gold reward that the law gives there."""
        distance = np.linspace(0.0, self.distance.max(), 200)
        return distance, self.start + self.law(distance) @ self.fit()[:2]


def distance_gold_proxy(rollouts: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sqrt(KL), gold and proxy of each rollout in a log."""
    kl, gold, proxy = (
        np.array([line[f"objective/{name}"] for line in rollouts]) for name in ("exact_kl", "gold", "proxy")
    )
    return np.sqrt(np.maximum(kl, 0.0)), gold, proxy


def best_of_divergence(n: int) -> float:
    """The bound log n - (n - 1) / n on the divergence of best-of-n, in nats (Beirami et al., "Theoretical guarantees on
    the best-of-n alignment policy", 2024)."""
    return log(n) - (n - 1) / n


def doubled(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`, which is the last in any case."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + [most]


def best_of_mean(values: np.ndarray, proxy: np.ndarray, n: int) -> float:
    """The mean value of the one of n responses that the proxy likes best, without bias from all N responses there are.

    values, proxy: (N, prompts). Sorted by proxy, the i-th of N is the best of C(i - 1, n - 1) of the C(N, n) choices.
    Of responses that the proxy likes equally each is chosen as often as the others: they count as their mean.
    (Nakano et al., "WebGPT", 2021, appendix I.)
    """
    N = len(proxy)
    weights = np.array([comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)])
    order = proxy.argsort(axis=0, kind="stable")
    equal = proxy[:, None] == proxy  # (N, N, prompts)
    values = (equal * values).sum(axis=1) / equal.sum(axis=1)
    return float((weights[:, None] * np.take_along_axis(values, order, axis=0)).sum(axis=0).mean())


def pooled(same: Sequence[Curve]) -> Curve:
    """The same curve of several pipelines as one: points concatenated, accuracy averaged."""
    arrays = {name: np.concatenate([getattr(curve, name) for curve in same]) for name in ("distance", "gold", "proxy")}
    return replace(same[0], accuracy=float(np.mean([curve.accuracy for curve in same])), **arrays)
