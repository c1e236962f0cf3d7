"""Tables of the benchmarks fit 80 columns; files are checked before measuring."""

import numpy as np
import pytest
from small_runs import broken_at_80_columns

from benchmarks import checkpoint, cli, gemm, generate, kernels, scale, startup, tokenizer, train
from benchmarks.cases import operation_cases
from benchmarks.ladder import view

# Figures as wide as any machine may give.
WIDE = {"seconds": 117.1234, "spread": 1.234, "tokens_per_s": 1234567.0, "ratio": 1234.56, "share_of_peak": 1.0}
MEMORY = {"peak_mb": 12345.0, "peak_above_imports_mb": 12345.0}
SAVING = {"megabytes": 12345.6, "step_ms": 12345.6, "saving_step_ms": 12345.6, "on_the_disk_ms": 123456.7}
PRODUCT = {"layer": "down", "product": "forward", "shape": "16384×50257×768", "threads": 128}
RATES = {"npllm_gflops": 12345.0, "bf16_gflops": 12345.0, "blas_gflops": 12345.0, "bf16_ratio": 100.0}
RUNG = {"operation": "cross-entropy", "shape": "1024×128×50257", "rung": "Numba parallel loop"}
ROOF = {"gflops": 1.23e-4, "gb_per_s": 1.23e-4, "limit": "arithmetic", "share": 1.0}
ROWS = {
    train: [
        {"config": "default", "contender": contender.name} | WIDE | MEMORY
        for contender in train.NPLLM + train.NUMPY + train.PYTORCH
    ],
    generate: [
        {"contender": contender.name, "gb_per_s": 123.4, "share_of_bandwidth": 1.0} | WIDE | MEMORY
        for contender in generate.CONTENDERS
    ],
    scale: [
        {"config": "default", "contender": name, "times_one": 100.0, "communication": 1.0, "planned": 100.0} | WIDE
        for name in (scale.name_of(128, 128), scale.SHARE, *scale.DDP)
    ],
    checkpoint: [{"config": "default", "spread": 1.1, "times_a_step": 100.0} | SAVING],
    startup: [{"what": "pretrain to its first step, cold", "seconds": 1234.5, "spread": 1.1, "rounds": 100}],
    tokenizer: [{"task": "encoding", "contender": "tokenizers", "mb_per_s": 1234.5} | WIDE],
    kernels: [
        {"operation": case.name, "shape": case.shape, "numpy_ms": 12345.123, "kernel_ms": 12345.123} | WIDE
        for case in operation_cases(np.dtype("float32"))
    ],
    gemm: [{"config": "default"} | PRODUCT | RATES | WIDE],
    view: [RUNG | ROOF | WIDE | {"ratio": 123456.7, "ns_per_element": each} for each in (None, 123456.78)],
}


@pytest.mark.parametrize("benchmark", ROWS, ids=lambda benchmark: benchmark.__name__.split(".")[-1])
def test_80_columns_break_no_figure(benchmark):
    tables = benchmark.tables(ROWS[benchmark])
    assert any(figure for table in tables for column in table.columns for figure in column.cells)
    assert [broken_at_80_columns(table) for table in tables] == [[]] * len(tables)


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("path", ["missing/figures", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    option, path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: pytest.fail("it measures"))
    monkeypatch.setattr(cli, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ladder", option, path]) == 5
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"benchmarks: {path} cannot be written (")
    assert len(errors.splitlines()) == 1


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(cli, "machine_facts", lambda dtype: pytest.fail("it measures"))
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["ladder", "--plot", "roofline.png"]) == 2
    assert capsys.readouterr().err == "benchmarks: --plot needs matplotlib; pip install 'npllm[plot]' installs it.\n"
