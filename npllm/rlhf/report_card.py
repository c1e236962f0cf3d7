"""`npllm rlhf`: run the pipeline of a task and write its report card.

The report card compares all methods. It has figures with confidence intervals, samples
and plots.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from npllm.files.atomic import write_atomically
from npllm.output import shell_word
from npllm.report.confidence import half_width
from npllm.report.plots import draw_if_possible
from npllm.report.reward_plot import Series, plot_rewards
from npllm.rlhf.judging import Verdict
from npllm.rlhf.overoptimisation import HEADINGS as STUDY_HEADINGS
from npllm.rlhf.overoptimisation import Figures, figures_of, panels, study_overoptimisation, study_section
from npllm.rlhf.pipeline import IMPROVED, Pipeline
from npllm.rlhf.pipeline_folder import hold_pipeline, record_of
from npllm.rlhf.reward_curves import distance_gold_proxy, pooled
from npllm.rlhf.tasks import Task, load_task
from npllm.runs.summary import read_summary

N_SAMPLES = 4  # prompts whose responses are shown, those of every method
HEADINGS = ("method", "gold", "proxy", "KL", "win-rate", "tokens", "ends", "dist1", "dist2")


@dataclass(frozen=True)
class Grade:
    """The figures of one method: means, and half widths of 95 % confidence intervals.

    The intervals are over responses if there is one seed, and over seeds if there are
    several. The fields are those of `Verdict`; win_rate is the mean of won.
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


def run_and_report(name: str, out: Path | None, seeds: int, console: Console, *, overoptimise: bool = False) -> None:
    """Run the pipeline of a task once per seed, then write and print the report card.

    The files are report_card.md, summary.json and, with matplotlib, plots as PNG.

    name: an embedded task or a Python file. out: the pipeline's folder; None = the
    folder of the task below runs/. seeds: the number of seeds, which count from 0.
    overoptimise: also study over-optimisation at the end (overoptimisation.py).
    """
    task = load_task(name)
    with hold_pipeline(out, record_of(name)) as path:
        _run_and_report(task, path, seeds, console, overoptimise)


def _run_and_report(task: Task, path: Path, seeds: int, console: Console, overoptimise: bool) -> None:
    pipelines = [Pipeline(task, path / f"seed-{seed}", seed, console) for seed in range(seeds)]
    verdicts = [pipeline.run() for pipeline in pipelines]
    study = study_overoptimisation(pipelines) if overoptimise else []
    grades = {of_method[0].method: grade(of_method) for of_method in zip(*verdicts, strict=True)}
    accuracy = float(np.mean([reward_accuracy(pipeline) for pipeline in pipelines]))
    study_figures = [figures_of(of_seeds) for of_seeds in study]
    summary = {
        "task": task.name,
        "seeds": seeds,
        "reward_accuracy": accuracy,
        "methods": {method: vars(of_method) for method, of_method in grades.items()},
        "overoptimisation": [vars(figures) for figures in study_figures],
    }
    write_atomically(path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_atomically(path / "report_card.md", report(task, grades, verdicts, accuracy, study_figures).encode())

    console.rule("report card")
    console.print(console_table(title(task, verdicts), HEADINGS, rows(grades)))
    console.print(f"The reward model ranks {accuracy:.1%} of held-out pairs rightly.")
    for text in samples(verdicts[0]):
        console.print(text)
    if study_figures:
        console.print(console_table("over-optimisation", STUDY_HEADINGS, [figures.row() for figures in study_figures]))
    png = path / "overoptimisation.png"
    series = {"": rollout_series(pipelines[0], verdicts[0][1])}
    lines = [draw_if_possible("plot", png, lambda: plot_rewards(series, png))]
    if study:
        hacking = path / "reward_hacking.png"
        series_of_study = panels([pooled(of_seeds) for of_seeds in study])
        lines.append(draw_if_possible("plot", hacking, lambda: plot_rewards(series_of_study, hacking, lines=False)))
    next_command = f"npllm generate {shell_word(pipelines[0].path / 'ppo')}"
    for line in (*lines, f"Report card: {path / 'report_card.md'}", f"Next: {next_command}"):
        console.print(line, soft_wrap=True)


def console_table(heading: str, headings: Sequence[str], cells: Sequence[tuple[str, ...]]) -> Table:
    """Return a table for the console, with little padding, to fit into a terminal."""
    columns = [Column(name) for name in headings]
    table = Table(*columns, title=heading, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in cells:
        table.add_row(*row)
    return table


def markdown_table(headings: Sequence[str], cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *cells)]


def grade(verdicts: Sequence[Verdict]) -> Grade:
    """Return the figures of one method. verdicts: one for each seed."""

    def mean(name: str) -> float:
        return float(np.mean([np.mean(getattr(verdict, name)) for verdict in verdicts]))

    def interval(name: str) -> float:
        one_seed = len(verdicts) == 1
        return half_width(getattr(verdicts[0], name) if one_seed else [getattr(v, name).mean() for v in verdicts])

    return Grade(
        gold=mean("gold"),
        gold_interval=interval("gold"),
        proxy=mean("proxy"),
        kl=mean("kl"),
        win_rate=mean("won"),
        win_rate_interval=interval("won"),
        length=mean("length"),
        stop_rate=mean("stop_rate"),
        distinct_1=mean("distinct_1"),
        distinct_2=mean("distinct_2"),
    )


def rows(grades: dict[str, Grade]) -> list[tuple[str, ...]]:
    """Return the cells of the table: one row per method, columns as in HEADINGS."""
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
    """Return the title: task, responses per method, and seeds if there are several."""
    n_seeds, n = len(verdicts), len(verdicts[0][0].gold)
    return f"{task.name}: {n} responses each" + (f", {n_seeds} seeds" if n_seeds > 1 else "")


def report(
    task: Task,
    grades: dict[str, Grade],
    verdicts: Sequence[Sequence[Verdict]],
    accuracy: float,
    study_figures: Sequence[Figures],
) -> str:
    """Return the report card in Markdown.

    verdicts: for each seed, one for each method. accuracy: the mean share of held-out
    pairs that the reward models rank rightly. study_figures: of the over-optimisation
    study; empty if there was none.
    """
    section = (
        study_section(markdown_table(STUDY_HEADINGS, [figures.row() for figures in study_figures]))
        if study_figures
        else ()
    )
    lines = [
        f"# {title(task, verdicts)}",
        "",
        f"The reward model ranks {accuracy:.1%} of held-out pairs rightly. KL: exact, from the fine-tuned model,",
        "in nats per response (of best-of-n an upper bound); win-rate: the share of responses with more gold than the",
        "fine-tuned model's, a tie counts half; dist1, dist2: distinct n-grams as a share of all; ±: 95 % confidence.",
        "",
        *markdown_table(HEADINGS, rows(grades)),
        "",
        "![gold and proxy against the distance from the fine-tuned model](overoptimisation.png)",
        "",
        *section,
        "## Samples",
        "",
        "```",
        *samples(verdicts[0]),
        "```",
        "",
    ]
    return "\n".join(lines)


def samples(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the lines with every method's responses to the first N_SAMPLES prompts."""
    lines = []
    for i in range(min(N_SAMPLES, len(verdicts[0].responses))):
        for verdict in verdicts:
            response = verdict.responses[i]
            end = "" if response.stopped else " (cut off)"
            lines.append(f"[{verdict.method}, gold {verdict.gold[i]:.2f}] {response.prompt}|{response.text}{end}")
        lines.append("")
    return lines


def reward_accuracy(pipeline: Pipeline) -> float:
    """Return the share of held-out pairs that the reward model ranks rightly."""
    return read_summary(pipeline.run_folder("reward"), {"accuracy": float})["accuracy"]


def rollout_series(pipeline: Pipeline, best_of: Verdict) -> list[Series]:
    """Return the curves of the plot.

    PPO, RLOO and GRPO have a point for each rollout, best-of-n has one for each n.
    best_of: the verdict on best-of-n.
    """
    series = [Series(name, *distance_gold_proxy(pipeline.rollouts(name))) for name in IMPROVED]
    kl, gold = np.array(best_of.curve).T
    return [*series, Series("best of n", np.sqrt(kl), gold)]
