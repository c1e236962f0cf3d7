"""The package as a whole: cost of an import, public names, import layers, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ENVIRONMENT, PATIENCE

import npllm

ROOT = Path(npllm.__path__[0]).parent
SOURCES = sorted((ROOT / "npllm").rglob("*.py"))
LARGEST_FILE, LARGEST_FUNCTION = 400, 60  # lines: what a reader can keep in mind, and what fits on a screen
OTHER_FRAMEWORKS = {"torch", "jax", "tensorflow"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running the code."""
    report = "; import sys; print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    command = [sys.executable, "-c", code + report]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return set(process.stderr.split())


def test_importing_the_package_is_free():
    unwanted = {"numpy", "numba", "h5py", "tyro", "rich", "regex", "matplotlib"}
    assert modules_after("import npllm; dir(npllm)") & unwanted == set()


def test_help_does_not_wait_for_the_compiler():
    unwanted = {"numba", "h5py", "matplotlib"}
    assert modules_after("from npllm.cli import main; assert main(['--help']) == 0") & unwanted == set()


@pytest.mark.parametrize("name", npllm.__all__)
def test_what_the_package_offers_is_there(name):
    thing = getattr(npllm, name)
    assert callable(thing)
    assert thing.__name__ == name
    assert name in dir(npllm)


def test_what_it_does_not_offer_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'npllm' has no attribute 'Transfomer'"):
        npllm.Transfomer  # noqa: B018


def test_imports_point_one_way_only():
    """The contracts of pyproject.toml hold; an import against a layer breaks one."""
    checker = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    process = subprocess.run(
        [sys.executable, "-c", checker], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " 0 broken" in process.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LARGEST_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LARGEST_FUNCTION, f"{node.name} has {length} lines"


def test_no_other_framework_is_imported():
    """Every gradient is written by hand, so no module may import another framework."""
    for folder in ("npllm", "tests", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not OTHER_FRAMEWORKS & {name.split(".")[0] for name in names}, path
