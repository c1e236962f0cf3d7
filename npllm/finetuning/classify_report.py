"""The results of `npllm classify`: a table, a plot, and summary.json."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from npllm.finetuning.classifier import ClassifierEvaluation
from npllm.finetuning.learning_curve import Point, accuracies
from npllm.report.confidence import half_width
from npllm.report.plots import draw_if_possible
from npllm.report.transfer_plot import plot_transfer
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.training.state import LoopState


def report_classify(
    run: RunFolder,
    state: LoopState,
    classes: Sequence[str],
    result: ClassifierEvaluation,
    points: Sequence[Point],
    console: Console,
) -> None:
    """Write summary.json and accuracy.png, and print the table.

    accuracy.png needs matplotlib. Each interval in summary.json is half the width of a
    95 % confidence interval.

    classes: their names, sorted. result: the run's own classifier on the test texts.
    points: the learning curve.
    """
    curves = {
        method: {labels: (float(np.mean(values)), half_width(values)) for labels, values in by_labels.items()}
        for method, by_labels in accuracies(points).items()
    }
    accuracy_by_labels = {
        method: {
            str(labels): {"mean": curves[method][labels][0], "interval": curves[method][labels][1], "seeds": values}
            for labels, values in by_labels.items()
        }
        for method, by_labels in accuracies(points).items()
    }
    figures = {"classes": list(classes), **result._asdict(), "accuracy_by_labels_per_class": accuracy_by_labels}
    write_summary(run, state, figures)
    console.print(accuracy_table(curves, points))
    console.print(f"with all labels, pretrained: accuracy {result.accuracy:.1%}")
    path = run.path / "accuracy.png"
    plot = draw_if_possible("plot", path, lambda: plot_transfer(curves, 1 / len(classes), path))
    console.print(plot, soft_wrap=True)


def accuracy_table(curves: Mapping[str, Mapping[int, tuple[float, float]]], points: Sequence[Point]) -> Table:
    """Return the table of the learning curve, with a row for each number of labels.

    A row has the number of updates, and the accuracy of each method with its confidence
    interval.

    curves: method -> labels per class -> (mean accuracy, half the interval's width).
    """
    table = Table("labels per class", "updates", *curves, title="accuracy on the test texts, mean ± 95 % confidence")
    n_updates = {point.labels: point.updates for point in points}
    for labels in n_updates:
        cells = [f"{mean:.1%} ± {100 * half:.1f}" for mean, half in (curve[labels] for curve in curves.values())]
        table.add_row(str(labels), str(n_updates[labels]), *cells)
    return table
