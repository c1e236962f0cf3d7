"""Pictures of what a stage measured at its end, from its summary.json."""

from collections.abc import Mapping
from typing import Any

from npllm.pages.curves import Chart
from npllm.pages.pictures import line_chart


def summary_charts(summary: Mapping[str, Any]) -> list[Chart]:
    """The pictures of a summary; none where it has no such figures."""
    try:
        return [*_learning_curve(summary), *_calibration(summary)]
    except (AttributeError, KeyError, TypeError, ValueError):  # figures of another shape stay in the tables
        return []


def _learning_curve(summary: Mapping[str, Any]) -> list[Chart]:
    """Of a classifier: the accuracy against the labels that it learnt from."""
    by_method = summary.get("accuracy_by_labels_per_class")
    if not by_method:
        return []
    series = {
        method: ([float(labels) for labels in points], [float(point["mean"]) for point in points.values()])
        for method, points in by_method.items()
    }
    title = "Accuracy on the test texts"
    return [Chart(title, line_chart(series, title, x_title="labels per class", y_title="accuracy"))]


def _calibration(summary: Mapping[str, Any]) -> list[Chart]:
    """Of a reward model: the accuracy on the pairs that it is so sure of."""
    bins = summary.get("by_confidence")
    if not bins:
        return []
    edges, accuracies = ([float(each[name]) for each in bins] for name in ("up_to", "accuracy"))
    title = "Accuracy by the confidence of the reward model"
    series = {"accuracy": (edges, accuracies), "as sure as it is right": (edges, edges)}
    return [Chart(title, line_chart(series, title, x_title="confidence, up to", y_title="accuracy"))]
