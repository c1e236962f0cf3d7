"""The columns of metrics.jsonl and thinned curves."""

import json

import numpy as np
import pytest

from npllm.pages.columns import BINS, MOST_COLUMNS, MetricsLog, thinned

RECORDS = [
    {"step": 1, "tokens": 8, "loss": 2.5},
    {"step": 2, "tokens": 16, "loss": None, "val_loss": 2.25},
    {"step": 3, "tokens": 24, "loss": 1.5},
]


def lines(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_columns_hold_what_the_lines_say(tmp_path):
    """A missing value is NaN and a null is infinity, so that only the null is a gap."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(RECORDS))
    columns = MetricsLog(path).columns()
    assert columns.names == ["step", "tokens", "loss", "val_loss"]
    np.testing.assert_array_equal(columns["loss"], [2.5, np.inf, 1.5])
    np.testing.assert_array_equal(columns["val_loss"], [np.nan, 2.25, np.nan])
    assert columns.n_bad == 0


def test_what_is_no_record_is_counted_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    bad = ["nonsense", "[1]", '{"loss": 1.0}', '{"step": "<script>"}', '{"step": 1e999}', "[" * 5000]
    odd = '{"step": 4, "loss": "<script>", "grad_norm": 1e400, "lr": true}'
    path.write_text("\n".join([*bad, odd]) + "\n" + '{"step": 5, "lo')  # the last line is cut off
    columns = MetricsLog(path).columns()
    assert columns.n_bad == len(bad)
    assert columns["step"].tolist() == [4]
    assert [columns[name].tolist() for name in ("loss", "grad_norm", "lr")] == [[np.inf]] * 3


def test_a_line_of_many_fields_makes_few_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1} | {f"figure {i}": i for i in range(1000)}) + "\n")
    assert len(MetricsLog(path).columns().names) == MOST_COLUMNS


def test_a_log_is_followed_through_growth_rollback_and_removal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert len(log.columns()) == 0
    path.write_text(lines(RECORDS) + '{"step": 4,')
    assert log.columns()["step"].tolist() == [1, 2, 3]
    with path.open("a") as file:
        file.write(' "loss": 1.0}\n')
    assert log.columns()["step"].tolist() == [1, 2, 3, 4]
    # A rollback puts another file in its place, which may even be longer by now.
    other = tmp_path / "other"
    other.write_text(lines([*RECORDS[:1], *({"step": step, "loss": 9.0} for step in range(2, 9))]))
    other.replace(path)
    assert log.columns()["loss"].tolist() == [2.5, *[9.0] * 7]
    path.unlink()
    assert len(log.columns()) == 0


def test_a_short_curve_stays_as_it_is():
    x, y = np.arange(5.0), np.array([1.0, np.nan, 3.0, np.inf, 2.0])
    assert thinned(x, y)[1] is y


@pytest.mark.parametrize("n", [4 * BINS + 1, 10**6])
def test_a_long_curve_keeps_its_extremes_and_its_gaps(n):
    x = np.arange(n, dtype=float)
    y = np.sin(x / n * 20)
    y[n // 3], y[n // 2] = 50.0, -50.0
    y[n // 4] = np.nan
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= 4 * BINS
    assert (np.diff(few_x) > 0).all()
    assert (np.nanmax(few_y), np.nanmin(few_y)) == (50.0, -50.0)
    assert few_x[np.isnan(few_y)].tolist() == [n // 4]
    np.testing.assert_array_equal(y[few_x.astype(int)], few_y)
