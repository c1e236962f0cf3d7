"""How much memory is left, read from hand-made copies of the system's files."""

import resource
from pathlib import Path

import pytest

from npllm.training.available import memory_left, peak_memory, resident_memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:          200 kB\nMemAvailable:    9000 kB\n"


def system(folder: Path, **files) -> Path:
    """Make a root folder with these files, {path: text}, and a proc/meminfo."""
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """Remove the limits of the process that runs the tests."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_what_is_available_counts_and_not_what_is_built_in_or_free(tmp_path):
    left = memory_left(system(tmp_path))
    assert left.n_bytes == 9000 * 1024
    assert "MemAvailable" in left.source


def test_where_the_system_does_not_say_all_memory_counts(tmp_path):
    left = memory_left(system(tmp_path, **{"proc/meminfo": "MemTotal: 16000 kB\n"}))
    assert left.n_bytes > 1 << 20
    assert "all memory" in left.source


@pytest.mark.parametrize("tight", ["a/b", "a", ""])
def test_the_tightest_cgroup_on_the_way_up(tmp_path, tight):
    """In version 2, a container may have no limit, but the slice above it has one."""
    files = {"proc/self/cgroup": "0::/a/b\n"}
    for group in ("a/b", "a", ""):
        folder = f"sys/fs/cgroup/{group}".rstrip("/")
        files[f"{folder}/memory.max"] = "5000000\n" if group == tight else "max\n"
        files[f"{folder}/memory.current"] = "2000000\n"
    left = memory_left(system(tmp_path, **files))
    assert left == (3_000_000, "memory.max of the cgroup, 5 MB")


def test_files_kept_in_memory_give_way(tmp_path):
    group = "sys/fs/cgroup/a"
    statistics = "anon 700000\ninactive_file 1000000\nactive_file 300000\n"
    files = {f"{group}/memory.max": "5000000", f"{group}/memory.current": "2000000", f"{group}/memory.stat": statistics}
    assert memory_left(system(tmp_path, **{"proc/self/cgroup": "0::/a\n"}, **files)).n_bytes == 4_300_000


def test_a_path_of_the_host_in_a_container(tmp_path):
    """The cgroup is mounted as the root, so the path that the process is said to have
    does not exist."""
    files = {"sys/fs/cgroup/memory.max": "4000000", "sys/fs/cgroup/memory.current": "1000000"}
    assert memory_left(system(tmp_path, **{"proc/self/cgroup": "0::/docker/0a1b\n"}, **files)).n_bytes == 3_000_000


@pytest.mark.parametrize(("limit", "expected"), [("6000000", 5_500_000), (str(2**63 - 4096), 9000 * 1024)])
def test_cgroups_of_version_1(tmp_path, limit, expected):
    """If no limit is set, version 1 has a huge number."""
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "12:cpu,cpuacct:/elsewhere\n7:memory:/job\n0::/\n",
        f"{group}/memory.limit_in_bytes": limit,
        f"{group}/memory.usage_in_bytes": "600000",
        f"{group}/memory.stat": "inactive_file 9\ntotal_inactive_file 100000\n",
    }
    assert memory_left(system(tmp_path, **files)).n_bytes == expected


@pytest.mark.parametrize(("name", "used_pages"), [("RLIMIT_AS", 40), ("RLIMIT_DATA", 7)])
def test_limits_of_the_process(tmp_path, monkeypatch, name, used_pages):
    limit = 50 * resource.getpagesize()

    def getrlimit(which):
        return (limit if which == getattr(resource, name) else resource.RLIM_INFINITY), resource.RLIM_INFINITY

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    left = memory_left(system(tmp_path, **{"proc/self/statm": "40 30 5 1 0 7 0\n"}))
    assert left.n_bytes == limit - used_pages * resource.getpagesize()
    assert name in left.source


def test_memory_of_this_process(tmp_path):
    root = system(tmp_path, **{"proc/self/statm": "40 30 5 1 0 7 0\n", "proc/self/status": "VmHWM:\t  123 kB\n"})
    assert resident_memory(root) == 30 * resource.getpagesize()
    assert peak_memory(root) == 123 * 1024
    elsewhere = tmp_path / "nothing"
    assert resident_memory(elsewhere) == peak_memory(elsewhere) > 1 << 20
