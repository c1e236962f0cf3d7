"""`npllm rlhf`: the report card of a task. Every method side by side, with confidence intervals, samples and a plot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from npllm.atomic import write_atomically
from npllm.bounded_read import read_bounded
from npllm.report.plots import NEEDS_MATPLOTLIB
from npllm.report.reward_plot import plot_overoptimisation
from npllm.rlhf.judging import Verdict, interval
from npllm.rlhf.road import IMPROVED, Road
from npllm.rlhf.tasks import Task, load_task
from npllm.strict_json import parse_json
from npllm.training.metrics import read_metrics

N_SAMPLES = 4  # responses shown, of the model before and of each method
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal distribution's.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
HEADINGS = ("method", "gold", "proxy", "KL", "win-rate", "tokens", "ends", "dist1", "dist2")


@dataclass(frozen=True)
class Grade:
    """One method's figures: means, and half widths of 95 % confidence intervals.

    The intervals are over prompts where there is one seed, over seeds where there are several.
    """

    gold: float
    gold_interval: float
    proxy: float
    kl: float
    win_rate: float
    win_rate_interval: float
    length: float
    stop_rate: float
    distinct_1: float
    distinct_2: float


def walk_and_report(name: str, path: Path, seeds: int, console: Console) -> None:
    """Walk the road of a task once for each seed, then write report_card.md, summary.json and a plot."""
    task = load_task(name)
    roads = [Road(task, path / f"seed-{seed}", seed, console) for seed in range(seeds)]
    verdicts = [road.walk() for road in roads]
    grades = {of_method[0].method: grade(of_method) for of_method in zip(*verdicts, strict=True)}
    accuracy = float(np.mean([reward_accuracy(road) for road in roads]))
    summary = {
        "task": task.name,
        "seeds": seeds,
        "reward_accuracy": accuracy,
        "methods": {method: vars(of_method) for method, of_method in grades.items()},
    }
    write_atomically(path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_atomically(path / "report_card.md", report(task, grades, verdicts, accuracy).encode())

    columns = [Column(heading, no_wrap=True) for heading in HEADINGS]
    table = Table(*columns, title=title(task, verdicts), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows(grades):
        table.add_row(*row)
    console.rule("report card")
    console.print(table)
    console.print(f"The reward model ranks {accuracy:.1%} of held-out pairs rightly.", highlight=False)
    for text in samples(verdicts[0]):
        console.print(text, markup=False, highlight=False)
    if find_spec("matplotlib"):
        plot_overoptimisation({run: road_metrics(roads[0], run) for run in IMPROVED}, verdicts[0][1].curve, path)
    else:
        console.print(f"No plot: {NEEDS_MATPLOTLIB}", highlight=False)
    console.print(f"Report card: {path / 'report_card.md'}", markup=False, highlight=False, soft_wrap=True)


def grade(verdicts: Sequence[Verdict]) -> Grade:
    """The verdicts of several seeds on one method, in figures."""

    def mean(name: str) -> float:
        return float(np.mean([np.mean(getattr(verdict, name)) for verdict in verdicts]))

    def half_width(name: str) -> float:
        if len(verdicts) == 1:
            return interval(getattr(verdicts[0], name))
        return interval_over_seeds([float(getattr(verdict, name).mean()) for verdict in verdicts])

    return Grade(
        gold=mean("gold"),
        gold_interval=half_width("gold"),
        proxy=mean("proxy"),
        kl=mean("kl"),
        win_rate=mean("won"),
        win_rate_interval=half_width("won"),
        length=mean("length"),
        stop_rate=mean("stop_rate"),
        distinct_1=mean("distinct_1"),
        distinct_2=mean("distinct_2"),
    )


def interval_over_seeds(values: Sequence[float]) -> float:
    """Half the width of a 95 % confidence interval of the mean of a few independent runs (Student's t)."""
    n = len(values)
    quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else 1.96
    return quantile * float(np.std(values, ddof=1)) / sqrt(n)


def rows(grades: dict[str, Grade]) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (
            method,
            f"{g.gold:.2f} ± {g.gold_interval:.2f}",
            f"{g.proxy:.2f}",
            f"{g.kl:.2f}",
            f"{g.win_rate:.2f} ± {g.win_rate_interval:.2f}",
            f"{g.length:.1f}",
            f"{g.stop_rate:.0%}",
            f"{g.distinct_1:.3f}",
            f"{g.distinct_2:.3f}",
        )
        for method, g in grades.items()
    ]


def title(task: Task, verdicts: Sequence[Sequence[Verdict]]) -> str:
    """What was judged, on how much."""
    n_seeds, n = len(verdicts), len(verdicts[0][0].gold)
    return f"{task.name}: {n} responses each" + (f", {n_seeds} seeds" if n_seeds > 1 else "")


def report(task: Task, grades: dict[str, Grade], verdicts: Sequence[Sequence[Verdict]], accuracy: float) -> str:
    """The report card in Markdown."""
    lines = [
        f"# {title(task, verdicts)}",
        "",
        f"The reward model ranks {accuracy:.1%} of held-out pairs rightly. KL: exact, from the fine-tuned model, in",
        "nats per response (of best-of-n its upper bound); win-rate: gold over the fine-tuned model's, half for a tie;",
        "dist-n (dist1, dist2): different runs of n tokens as a share of all; ±: 95 % confidence.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join("---" for _ in HEADINGS) + " |",
        *("| " + " | ".join(row) + " |" for row in rows(grades)),
        "",
        "![gold and proxy against the distance from the fine-tuned model](overoptimisation.png)",
        "",
        "## Samples",
        "",
        "```",
        *samples(verdicts[0]),
        "```",
        "",
    ]
    return "\n".join(lines)


def samples(verdicts: Sequence[Verdict]) -> list[str]:
    """The same prompts, answered before and after."""
    lines = []
    for i in range(min(N_SAMPLES, len(verdicts[0].responses))):
        for verdict in verdicts:
            response = verdict.responses[i]
            end = "" if response.stopped else " (cut off)"
            lines.append(f"[{verdict.method}, gold {verdict.gold[i]:.2f}] {response.prompt}|{response.text}{end}")
        lines.append("")
    return lines


def reward_accuracy(road: Road) -> float:
    """Of a road's reward model on held-out pairs."""
    return float(_summary(road.run("reward").summary)["accuracy"])


def road_metrics(road: Road, name: str) -> list[dict[str, Any]]:
    """The figures of a run's rollouts, in order."""
    return [record for record in read_metrics(road.run(name).metrics) if "objective/exact_kl" in record]


def _summary(path: Path) -> dict[str, Any]:
    return parse_json(read_bounded(path, 1 << 20))
