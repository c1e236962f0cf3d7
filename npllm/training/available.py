"""How much memory this process may still take.

The machine, the process's cgroups (containers) and its own limits each leave so much.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
CGROUPS = Path("sys/fs/cgroup")
MOST = 1 << 60  # bytes; cgroups of version 1 say "no limit" with a number beyond it


class Left(NamedTuple):
    """n_bytes: the bytes that are left. source: the limit that leaves them, for
    messages."""

    n_bytes: int
    source: str


def memory_left(root: Path = ROOT) -> Left:
    """The least that any limit leaves. root: the folder that holds proc and sys."""
    return min((_of_machine(root), *_of_cgroups(root), *_of_process(root)), key=lambda left: left.n_bytes)


def resident_memory(root: Path = ROOT) -> int:
    """Resident bytes of this process. Where the system does not tell them, the peak."""
    pages = _pages(root)
    return pages[1] * resource.getpagesize() if pages else peak_memory(root)


def peak_memory(root: Path = ROOT) -> int:
    """The most bytes of this process that were resident at one time."""
    if highest := _numbers(root / "proc/self/status").get("VmHWM:"):
        return 1024 * highest
    # On Linux ru_maxrss includes the peak of the process that started this one.
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _of_machine(root: Path) -> Left:
    """What Linux can give without swapping; on other systems all physical memory."""
    available = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        return Left(1024 * available, "MemAvailable of this machine")
    return Left(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "all memory of this machine")


def _of_cgroups(root: Path) -> Iterator[Left]:
    """What the process's cgroups and their parents leave, in cgroups of both versions.
    Cached files count as used in a cgroup, but the system can drop them."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, names = CGROUPS, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            folder, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):  # in a container some of these may not exist
            yield from _of_cgroup(root / folder / group, *names)


def _of_cgroup(folder: Path, limit_name: str, used_name: str, prefix: str) -> Iterator[Left]:
    limit, used = (_lines(folder / name) for name in (limit_name, used_name))
    if not limit or not used or not limit[0].isdecimal() or int(limit[0]) > MOST:
        return
    statistics = _numbers(folder / "memory.stat")
    files = sum(statistics.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))
    left = int(limit[0]) - max(0, int(used[0]) - files)
    yield Left(max(0, left), f"{limit_name} of the cgroup, {int(limit[0]) / 1e6:,.0f} MB")


def _of_process(root: Path) -> Iterator[Left]:
    """What `ulimit -v` and `ulimit -d` leave."""
    if pages := _pages(root):
        for name, column in (("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)):
            limit, _ = resource.getrlimit(getattr(resource, name))
            if limit != resource.RLIM_INFINITY:
                left = max(0, limit - pages[column] * resource.getpagesize())
                yield Left(left, f"{name} of this process, {limit / 1e6:,.0f} MB")


def _pages(root: Path) -> list[int]:
    """Pages of this process: all, resident, shared, code, 0, data. Empty where the
    system has no such file."""
    lines = _lines(root / "proc/self/statm")
    return [int(word) for word in lines[0].split()] if lines else []


def _numbers(path: Path) -> dict[str, int]:
    """Name -> number of each line `name number ...` of a file."""
    words = (line.split() for line in _lines(path))
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    """The lines of a file. Empty where there is no such file or it may not be read: it
    then sets no limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
