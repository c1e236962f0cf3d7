"""The object that stands for a run."""

import json
import os

import numpy as np
import pytest
from small_runs import checkpoints, content

import npllm
from npllm.errors import DataError
from npllm.training.config import RunConfig


def test_its_parts_are_those_of_the_folder(finished_run):
    before = content(finished_run)
    run = npllm.Run(str(finished_run))
    assert run.path == finished_run
    assert os.fspath(run) == str(finished_run)
    assert isinstance(run.config, RunConfig)
    assert run.config.train.steps == 12
    assert run.summary == json.loads((finished_run / "summary.json").read_text())
    model, tokenizer = npllm.load(run)
    np.testing.assert_array_equal(run.model.params.flat, model.params.flat)
    assert run.tokenizer.sha256() == tokenizer.sha256()
    assert run.sample("the ", max_tokens=9, seed=3) == "".join(
        npllm.generate(model, tokenizer, "the ", max_tokens=9, seed=3)
    )
    assert content(finished_run) == before


def test_metrics_are_columns_with_a_value_for_each_update(finished_run):
    metrics = npllm.Run(finished_run).metrics
    assert metrics["step"].tolist() == list(range(1, 13))
    assert metrics["step"].dtype == np.int64
    assert metrics["loss"].dtype == metrics["val_loss"].dtype == np.float64
    assert np.flatnonzero(np.isfinite(metrics["val_loss"])).tolist() == [3, 7, 11]


def test_it_is_shown_in_one_line(finished_run):
    run = npllm.Run(finished_run)
    figure = f"{run.summary['val_bits_per_byte']:.3f} bits/byte"
    assert repr(run) == f"Run({str(finished_run)!r}: pretrain, 1.19 k parameters, 12 steps, {figure})"


def test_a_notebook_shows_its_plot_as_an_image(finished_run):
    figure = npllm.Run(finished_run).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [line.get_label() for line in figure.axes[0].lines] == ["training, each step", "validation sample"]


def test_what_is_no_run_is_refused_and_what_is_missing_is_named(tmp_path, finished_run):
    with pytest.raises(DataError, match="is not a folder"):
        npllm.Run(tmp_path / "none")
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.toml").write_bytes((finished_run / "config.toml").read_bytes())
    run = npllm.Run(unfinished)
    assert run.metrics == {}
    assert repr(run) == f"Run({str(unfinished)!r}: pretrain, step 0 of 12)"
    with pytest.raises(DataError, match="has no checkpoint"):
        run.model  # noqa: B018
    assert checkpoints(unfinished) == []
