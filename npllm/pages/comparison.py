"""The page of `npllm report RUN_1 RUN_2 ...`: curves in one picture, and what
differs."""

from collections.abc import Mapping, Sequence
from math import log
from typing import NamedTuple

import numpy as np

from npllm.pages.columns import MetricsLog, thinned
from npllm.pages.curves import EVERY_RUN, LOSS_UNITS, OF_STAGE, STEP, Chart, Picture, curve
from npllm.pages.page import render
from npllm.pages.pictures import line_chart
from npllm.pages.run_report import Problems, RunFiles, read_files, state_of, tokens_per_byte
from npllm.pages.values import simple_values
from npllm.runs.run_folder import RunFolder


class Row(NamedTuple):
    """A field and its value in each run, as text; "" = the run does not have it."""

    name: str
    values: list[str]


def comparison_html(runs: Sequence[RunFolder]) -> str:
    """The page that compares runs."""
    problems = [Problems(run) for run in runs]
    files = [read_files(run, MetricsLog(run.metrics), of) for run, of in zip(runs, problems, strict=True)]
    names = distinct_names([each.name for each in files])
    ratios = [
        of.part(lambda run=run: tokens_per_byte(run), {}) if run.val_shard.exists() else {}
        for run, of in zip(runs, problems, strict=True)
    ]
    return render(
        "comparison.html",
        names=names,
        stages=[each.stage for each in files],
        states=[state_of(each) for each in files],
        charts=[*bits_charts(names, files, ratios), *shared_charts(names, files)],
        results=results(files),
        differences=differences([each.config for each in files], [each.record for each in files]),
        problems=[f"{name}: {line}" for name, of in zip(names, problems, strict=True) for line in of.sentences],
        contents=[("runs", "Runs"), ("curves", "Curves"), ("results", "Results"), ("differences", "What differs")],
    )


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names of runs, numbered where one occurs twice."""
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def shared_charts(names: Sequence[str], files: Sequence[RunFiles]) -> list[Chart]:
    """A picture of each column that two runs or more have, with a curve for each."""
    stages = dict.fromkeys(each.stage for each in files)
    unit = LOSS_UNITS.get(files[0].stage, "") if len(stages) == 1 else ""
    losses = (Picture("Validation loss", unit, {"val_loss": ""}), Picture("Training loss", unit, {"loss": ""}))
    pictures = [*losses, *(picture for stage in stages for picture in OF_STAGE.get(stage, ())), *EVERY_RUN]
    columns = {
        column: (f"{picture.title}: {name}" if len(picture.columns) > 1 else picture.title, picture.unit)
        for picture in pictures
        for column, name in picture.columns.items()
    }
    drawn = []
    for column, (title, of) in columns.items():
        curves = {name: curve(each.columns, column) for name, each in zip(names, files, strict=True)}
        there = {name: thinned(*found) for name, found in curves.items() if np.isfinite(found[1]).any()}
        if len(there) > 1:
            drawn.append(Chart(title, line_chart(there, title, x_title=STEP, y_title=of)))
    return drawn


def bits_charts(names: Sequence[str], files: Sequence[RunFiles], ratios: Sequence[Mapping[str, float]]) -> list[Chart]:
    """The validation loss in bits per byte, which runs with different vocabularies have
    in common."""
    series = {}
    for name, each, ratio in zip(names, files, ratios, strict=True):
        x, y = curve(each.columns, "val_loss")
        if ratio and np.isfinite(y).any():
            series[name] = thinned(x, y * ratio["val_loss"] / log(2))
    title = "Validation loss in bits per byte"
    picture = line_chart(series, title, x_title=STEP, y_title="bits per byte") if len(series) > 1 else None
    return [Chart(title, picture)] if picture else []


def results(files: Sequence[RunFiles]) -> list[Row]:
    """The numbers of the summaries."""
    return rows_of([simple_values(each.summary) for each in files])


def differences(configs: Sequence[Mapping[str, Mapping]], records: Sequence[Mapping[str, str]]) -> list[Row]:
    """The fields of the configs, and of machines and versions, that are not the same in
    all runs."""
    flat = [
        {
            f"{section}.{name}": value
            for section, fields in config.items()
            for name, value in simple_values(fields).items()
        }
        | {f"run.{name}": value for name, value in record.items()}
        for config, record in zip(configs, records, strict=True)
    ]
    return [row for row in rows_of(flat) if len(set(row.values)) > 1]


def rows_of(values: Sequence[Mapping[str, str]]) -> list[Row]:
    """A row for each name that occurs."""
    names = dict.fromkeys(name for each in values for name in each)
    return [Row(name, [each.get(name, "") for each in values]) for name in names]
