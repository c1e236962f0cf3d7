"""The package installed in any way, or not at all."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from small_runs import pretrain_arguments, run, write_text

import npllm

ROOT = Path(npllm.__path__[0]).parent


def test_the_version_has_one_source(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(npllm.__file__)
    assert run("--version") == 0
    assert capsys.readouterr().out == f"npllm {npllm.__version__}\n"


@pytest.mark.usefixtures("quick")
def test_a_checkout_that_is_not_installed_trains(tmp_path, monkeypatch):
    """It has no metadata."""

    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", fail)
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out)) == 0
    recorded = tomllib.loads((out / "config.toml").read_text())["run"]
    assert recorded["npllm"] == npllm.__version__
    assert {"numpy", "numba", "python", "cpu"} < recorded.keys()


def test_every_dependency_has_a_minimum_that_is_tried():
    """.ci/run reads them by line."""
    source = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tried = re.findall(r'^ *"([a-z0-9]*>=[0-9.]*)"', source, flags=re.MULTILINE)
    assert tried == tomllib.loads(source)["project"]["dependencies"]
    assert len(tried) == 6
