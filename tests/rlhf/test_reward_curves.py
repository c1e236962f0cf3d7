"""The law of over-optimisation, and the figures to which it is fitted."""

from itertools import combinations, permutations

import numpy as np
import pytest

from npllm.report.reward_plot import Series, reward_figure
from npllm.rlhf.overoptimisation import figures_of, panels
from npllm.rlhf.reward_curves import Curve, best_of_mean, pooled

DISTANCE = np.array([0.0, 0.3, 0.7, 1.0, 1.8, 2.5])


def curve(method="ppo", pairs=64, kl_coef=0.0, distance=DISTANCE, gold=None, proxy=None) -> Curve:
    gold = 0.4 + 0.1 * distance if gold is None else gold
    return Curve(method, pairs, kl_coef, 0.9, distance, gold, distance if proxy is None else proxy)


def gold_by_law(method: str, alpha: float, beta: float) -> np.ndarray:
    """Return gold at DISTANCE: 0.4 plus the law of Gao et al., written by hand."""
    rate = alpha - beta * (np.log(DISTANCE[1:]) if method == "ppo" else DISTANCE[1:])
    return 0.4 + np.array([0.0, *DISTANCE[1:] * rate])


@pytest.mark.parametrize("method", ["ppo", "best of n"])
def test_the_law_is_recovered(method):
    gold = gold_by_law(method, 0.5, 0.3)
    fitted = curve(method, gold=gold)
    assert fitted.fit() == pytest.approx((0.5, 0.3, 1.0))
    distance, line = fitted.fitted()
    assert np.interp(DISTANCE, distance, line) == pytest.approx(gold, abs=1e-3)


def test_what_the_law_does_not_explain():
    """Gold alternates at almost equal distances, where the law is almost constant.

    It therefore explains almost no variance.
    """
    distance = np.array([0.0, *np.linspace(2.0, 2.1, 40)])
    gold = np.array([0.5, *np.tile([0.0, 1.0], 20)])
    assert curve(distance=distance, gold=gold).fit()[2] == pytest.approx(0.0, abs=0.05)


def test_pipelines_that_start_at_different_gold_are_measured_from_their_mean():
    """The gold of two seeds differs by 0.1 everywhere; the law fits their mean."""
    gold = gold_by_law("ppo", 0.5, 0.3)
    both = pooled([curve(gold=gold - 0.05), curve(gold=gold + 0.05)])
    assert both.start == pytest.approx(0.4)
    assert both.fit()[:2] == pytest.approx((0.5, 0.3))


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    values, proxy = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    for n in range(1, 7):
        choices = [np.array(choice) for choice in combinations(range(6), n)]
        best = [values[choice[proxy[choice, p].argmax()], p] for choice in choices for p in range(3)]
        assert best_of_mean(values, proxy, n) == pytest.approx(np.mean(best))


def test_of_equally_liked_responses_each_is_chosen_as_often():
    """The result equals the mean over all orders of the responses.

    In each order the later of two equal responses wins.
    """
    values, proxy = np.array([3.0, 1.0, 8.0, 5.0, 2.0]), np.array([1.0, 0.0, 1.0, 2.0, 1.0])
    for n in range(1, 6):
        best = []
        for order in permutations(range(5)):
            choice = sorted(order[:n], key=lambda i: proxy[i])  # stable
            best.append(values[choice[-1]])
        both = np.stack([values, values[::-1]], axis=1), np.stack([proxy, np.zeros(5)], axis=1)
        assert best_of_mean(values[:, None], proxy[:, None], n) == pytest.approx(np.mean(best))
        assert best_of_mean(*both, n) == pytest.approx((np.mean(best) + values.mean()) / 2)


def test_figures_are_of_the_first_best_and_last_point_of_each_seed():
    one = curve(kl_coef=0.1, gold=np.array([0.4, 0.9, 0.8, 0.7, 0.6, 0.1]))
    other = curve(kl_coef=0.1, gold=np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.3]), distance=2 * DISTANCE)
    figures = figures_of([one, other])
    assert (figures.gold_first, figures.gold_best, figures.gold_last) == pytest.approx((0.5, 0.75, 0.2))
    assert figures.kl_last == pytest.approx((2.5**2 + 5.0**2) / 2)
    assert figures.row() == ("ppo", "64", "0.1", "90%", "0.50 0.75 0.20", "3.75", "15.62", "", "", "")


def test_the_picture_shows_every_curve_in_its_panel():
    pytest.importorskip("matplotlib")
    curves = [curve(), curve(pairs=256), curve(kl_coef=0.1), curve("best of n"), curve("best of n", pairs=256)]
    shown = panels(curves)
    assert {title: [one.label for one in series] for title, series in shown.items()} == {
        "PPO without a penalty": ["64 pairs", "256 pairs"],
        "PPO, 64 pairs": ["kl_coef 0", "kl_coef 0.1"],
        "best of n": ["64 pairs", "256 pairs"],
    }
    axes = reward_figure(shown, lines=False).axes
    assert [len(one.lines) for one in axes] == [4, 2, 3, 2, 4, 2], "points, and the law where there is no penalty"
    assert axes[0].lines[0].get_xydata().tolist() == np.stack([DISTANCE, curve().gold], axis=1).tolist()
    assert axes[1].lines[0].get_xydata().tolist() == np.stack([DISTANCE, curve().proxy], axis=1).tolist()


def test_a_series_without_a_proxy_is_drawn_with_gold_only():
    pytest.importorskip("matplotlib")
    gold, proxy = reward_figure({"": [Series("best of n", DISTANCE, DISTANCE)]}, lines=True).axes
    assert (len(gold.lines), len(proxy.lines)) == (1, 0)
