"""Compiled kernels on the disk: never an old one, and a cache that cannot be used is a
miss, said in one line."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import FunctionType

import pytest
from numba import config
from small_runs import ENVIRONMENT, PATIENCE, run

from npllm.errors import NpllmWarning
from npllm.kernels import compiled_cache
from npllm.kernels.jit import serial

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


def double(x):
    return 2 * x


def kernel_of_a_new_process():
    """A kernel of the package that was never called."""
    function = FunctionType(double.__code__, {}, "double")
    function.__module__ = "npllm.kernels"
    return serial(function)


def found() -> bool:
    """Whether a new process finds the kernel; it is compiled and kept if not."""
    kernel = kernel_of_a_new_process()
    assert kernel(21) == 42
    return kernel.stats.cache_hits.total() == 1


def with_warnings(call):
    """The result of a call, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(warning.message) for warning in caught if warning.category is NpllmWarning]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, as a process finds it that has not warned yet. Returns its
    folder."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled_cache, "_warned", [])
    compiled_cache.folder_to_write.cache_clear()
    yield tmp_path / "cache"
    compiled_cache.folder_to_write.cache_clear()


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_what_is_compiled_is_found(cache):
    assert compiled_cache.is_lacking(kernel_of_a_new_process())
    assert with_warnings(lambda: [found(), found()]) == ([False, True], [])
    assert [path.name.rsplit("-", 1)[0] for path in kept(cache)] == [
        f"npllm.kernels.double-{double.__code__.co_firstlineno}"
    ]
    assert not compiled_cache.is_lacking(kernel_of_a_new_process())


def test_each_kind_of_argument_has_its_own(cache):
    assert not found()
    assert kernel_of_a_new_process()(0.25) == 0.5
    assert len(kept(cache)) == 2
    assert found()


def test_a_kernel_of_another_package_is_not_kept(cache):
    """The digest does not see its sources."""
    assert serial(double)(21) == 42
    assert kept(cache) == []


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"garbage",
        lambda content: content[:999] + bytes([content[999] ^ 1]) + content[1000:],
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "half", "garbage", "one bit", "zeros"],
)
def test_a_damaged_file_is_a_miss_and_is_replaced(cache, damaged):
    found()
    [path] = kept(cache)
    path.write_bytes(damaged(path.read_bytes()))
    assert with_warnings(lambda: [found(), found()]) == (
        [False, True],
        [f"The compiled kernel {path} cannot be read (it is damaged); it is compiled again."],
    )


def test_a_file_that_may_not_be_read_is_a_miss(cache):
    found()
    [path] = kept(cache)
    path.unlink()
    path.mkdir()  # whom permissions do not stop, this does
    hits, [warning] = with_warnings(lambda: [found(), found()])
    assert hits == [False, False]
    assert "Is a directory" in warning


def test_a_full_disk_is_said_once(cache, monkeypatch):
    def fail(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    hits, [warning] = with_warnings(lambda: [found(), found()])
    assert hits == [False, False]
    assert warning.startswith("Compiled kernels are not kept for later runs: ")
    assert "(No space left on device)" in warning
    assert kept(cache) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC], ids=errno.errorcode.get)
def test_no_place_that_can_be_written_is_said_once(cache, monkeypatch, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", fail)
    hits, [warning] = with_warnings(lambda: [found(), found()])
    assert hits == [False, False]
    assert os.strerror(number) in warning
    assert warning.endswith("set NUMBA_CACHE_DIR to a folder that can be written.")
    assert not compiled_cache.is_lacking(kernel_of_a_new_process())  # nobody can hand kernels over


def test_a_folder_that_is_deleted_meanwhile_is_made_again(cache):
    found()
    shutil.rmtree(cache)
    assert with_warnings(lambda: [found(), found()]) == ([False, True], [])


def test_clear_deletes_the_kernels_of_all_sources(cache, monkeypatch):
    found()
    monkeypatch.setattr(compiled_cache, "FOLDER", f"{compiled_cache.PREFIX}of-other-sources")
    compiled_cache.folder_to_write.cache_clear()
    assert not found()
    (cache / "npllm-0.1.0").mkdir()  # somebody's sources
    compiled_cache.clear()
    assert [path.name for path in cache.iterdir()] == ["npllm-0.1.0"]


def test_warmup_clear_deletes_before_it_compiles(cache, monkeypatch):
    found()
    seen = []
    monkeypatch.setattr("npllm.training.compile_ahead.cache_is_empty", lambda: False)
    monkeypatch.setattr("npllm.training.warmup.compile_kernels", lambda: seen.append(kept(cache)))
    assert run("warmup") == 0
    assert run("warmup", "--clear") == 0
    assert [len(files) for files in seen] == [1, 0]


def test_old_folders_do_not_pile_up(cache):
    names = [f"{compiled_cache.PREFIX}{age}" for age in range(20)]
    for age, name in enumerate(names):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (1000 - age, 1000 - age))
    found()
    assert {path.name for path in cache.iterdir()} == {compiled_cache.FOLDER, *names[:7]}


def test_an_old_folder_that_cannot_be_deleted_is_left(cache, monkeypatch):
    """It may be another user's."""
    for number in range(20):
        (cache / f"{compiled_cache.PREFIX}{number}").mkdir(parents=True)

    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert with_warnings(lambda: [found(), found()]) == ([False, True], [])


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(config, "CACHE_DIR", "~/kernels")
    assert compiled_cache.folders() == [tmp_path / "kernels" / compiled_cache.FOLDER]


def test_a_kernel_in_the_second_place_is_found_without_a_word(cache, monkeypatch):
    """The first place may be another user's, and closed to this one."""
    found()
    [path] = kept(cache)
    closed = cache.parent / "closed" / compiled_cache.FOLDER / path.name
    closed.mkdir(parents=True)  # cannot be read as a file
    monkeypatch.setattr(compiled_cache, "_parents", lambda: [cache.parent / "closed", cache])
    assert with_warnings(found) == (True, [])


# The verb is any: what matters is that the command line calls a kernel.
PROGRAM = """
import sys
import numpy as np
from npllm import cli, kernels

def call():
    gate = np.linspace(0, 2, 8, dtype=np.float32)
    print(kernels.swiglu_forward(gate, gate)[0].sum(), kernels.swiglu._forward_chunk.stats.cache_hits.total())

cli.VERBS["resume"] = call
sys.exit(cli.main(["resume"]))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package, without compiled kernels, as a folder for PYTHONPATH."""
    shutil.copytree(ROOT / "npllm", tmp_path / "copy" / "npllm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def call_kernel(package: Path, **environment) -> tuple[str, int, str]:
    """The sum of a kernel's result, its hits in the cache, and stderr, of a new
    process."""
    process = subprocess.run(
        [sys.executable, "-P", "-B", "-c", PROGRAM],
        env=ENVIRONMENT | {"PYTHONPATH": str(package)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    result, hits = process.stdout.split()
    return result, int(hits), process.stderr


@pytest.mark.parametrize("place", ["NUMBA_CACHE_DIR", pytest.param("XDG_CACHE_HOME", marks=pytest.mark.long)])
def test_a_kernel_of_other_sources_is_never_used(package, tmp_path, place):
    """The sigmoid is compiled into SwiGLU, whose own file stays as it is."""
    (package / "npllm" / "kernels" / "__pycache__").touch()  # in the way of a folder beside the sources
    environment = {"NUMBA_CACHE_DIR": "", place: str(tmp_path / "cache")}
    first = call_kernel(package, **environment)
    path = package / "npllm" / "kernels" / "vector_math.py"
    old = path.stat()
    path.write_text(path.read_text().replace("def sigmoid(x):\n", "def sigmoid(x):\n    x = x + x\n"))
    os.utime(path, (old.st_atime, old.st_mtime))
    changed = call_kernel(package, **environment)
    assert changed[0] != first[0]
    assert call_kernel(package, **environment) == (changed[0], 1, "")


@pytest.mark.parametrize("source", ["kernels/gemm/tile.py", "reference/gelu.py", "tokenizer/kernels/scan.py"])
def test_every_source_of_a_kernel_counts(package, monkeypatch, source):
    """Kernels hold constants of the reference."""
    copies = [package / "npllm" / folder.relative_to(compiled_cache.PACKAGE) for folder in compiled_cache.SOURCES]
    monkeypatch.setattr(compiled_cache, "SOURCES", copies)
    monkeypatch.setattr(compiled_cache, "PACKAGE", package / "npllm")
    before = compiled_cache._digest_of_sources()
    with (package / "npllm" / source).open("a") as file:
        file.write("\n")
    assert compiled_cache._digest_of_sources() != before


def test_nowhere_to_keep_kernels_is_one_line_and_the_work_goes_on(package, tmp_path):
    """Files stand in the way of both folders, as an installation without permission and
    a missing home would."""
    (package / "npllm" / "kernels" / "__pycache__").touch()
    (tmp_path / "file").touch()
    result, hits, stderr = call_kernel(package, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert float(result) > 0
    assert hits == 0
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"npllm: Compiled kernels are not kept for later runs ({tmp_path / 'file'}")
