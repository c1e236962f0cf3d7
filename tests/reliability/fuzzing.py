"""Good files, mutated at random and read: whatever comes out, it must be a typed error or mean what it meant before.

The reading happens in a process of its own, with a limit of memory and of time for each file: a crash of the HDF5
library, a file that asks for terabytes or an endless loop are findings like a traceback. Each file is written before it
is read, so the one that did the harm is there afterwards.

    run_fuzzer(folder, seed, seconds=60)      start that process and wait; used by the tests and by tools/fuzz.py
    python fuzzing.py FOLDER SEED MUTATIONS SECONDS      that process
"""

import copy
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import npllm

MEMORY = 400 << 20  # bytes above what the process has when everything is imported; without the limit it is gigabytes
LONGEST_READING = 10  # seconds
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(npllm.__path__[0]).parent), "NUMBA_NUM_THREADS": "1"}

INTERESTING_BYTES = (0, 1, 0x20, 0x7F, 0x80, 0xFF)
ODD_VALUES = (
    *(None, True, 0, 1, -1, 3, 2**31, 2**62, 2**63, 2**64, 10**12, 10**400, 0.0, 0.5, 1.0, 1e308, 5e-324),
    *("", "0", "x", "gelu", "rotary", "float64", "\0", "\ud800", "../../x", "z" * 100_000, "(?:a|a)+$", "(?r)a{9}"),
    *([], {}, [[]], [None], ["params"], {"type": "BPE"}, [0] * 1000, [[1.0, 2.0]] * 1000),
)


class Report(NamedTuple):
    """What came out. failure: what was printed when it went wrong, "" if nothing did; file: the one that did it."""

    mutations: int
    refused: int
    failure: str
    file: Path | None


class Target(NamedTuple):
    """A kind of file. make: the mutated content. read: reads the file and checks what comes out of it."""

    name: str
    make: Callable[[random.Random], bytes]
    read: Callable[[Path], None]


def run_fuzzer(folder: Path, seed: int, *, mutations: int = 10**9, seconds: float = 1e9) -> Report:
    """Read mutated files, written into `folder`, until one of the two limits is reached or something goes wrong."""
    command = [sys.executable, "-X", "faulthandler", __file__, str(folder), str(seed), str(mutations), str(seconds)]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    counts = [int(word) for word in process.stdout.split()[-2:]] or [0, 0]
    if process.returncode == 0:
        return Report(*counts, "", None)
    last = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=None)
    return Report(*counts, process.stderr or f"it ended with code {process.returncode}", last)


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The data with one to three changes. others: files of which a piece may be taken."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _changed(rng, data, rng.choice(others))
    return data


def _changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8))
    start, stop = sorted((rng.randrange(len(data) + 1), min(len(data), at + rng.randrange(64))))
    changed = bytearray(data)
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            for place in rng.choices(range(len(data) or 1), k=rng.choice((1, 1, 4))):
                changed[place : place + 1] = bytes([(data[place : place + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
        case 2 | 3:
            changed[at : at + size] = bytes([rng.choice(INTERESTING_BYTES)]) * size
        case 4:
            changed[at : at + size] = rng.choice((at, len(data), len(data) - at, 1 << rng.randrange(64))).to_bytes(
                8, "little"
            )[:size]
        case 5:
            changed[at:at] = data[start:stop] or rng.randbytes(size)
        case 6:
            del changed[at : at + rng.randrange(64)]
        case 7:  # a piece of the other file in the same place, or from there on
            end = rng.choice((at + size, at + 64, at + 512, len(other)))
            changed[at:end] = other[at:end]
    return bytes(changed)


def mutated_json(rng: random.Random, document: Any) -> Any:
    """A copy in which one to three values are replaced, deleted, doubled or exchanged with another one's."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case 1:
                container[rng.choice(("", "x", "params", "k" * 1000))] = container[key]
            case 2:
                other, name = rng.choice(places)
                container[key] = copy.deepcopy(other[name])
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return document


def _places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value; of long containers the first ones, so that each kind is met often."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys[:20] for place in ((node, key), *_places(node[key]))]


class Timeout(BaseException):
    """A reading took too long. No Exception, so that nothing between takes it for an error of its own."""


def fuzz(folder: Path, seed: int, mutations: int, seconds: float, targets: list[Target]) -> tuple[int, int]:
    """Mutate and read, each target in turn; how many there were and how many of them were refused. What is not a typed
    error that names the file is raised."""
    from npllm.errors import NpllmError

    def give_up(*_):
        raise Timeout(f"more than {LONGEST_READING} seconds")

    signal.signal(signal.SIGALRM, give_up)
    rng, end, refused = random.Random(seed), time.monotonic() + seconds, 0
    for count, target in zip(range(mutations), itertools.cycle(targets)):  # noqa: B905
        if time.monotonic() > end:
            return count, refused
        path = folder / target.name
        path.write_bytes(target.make(rng))
        signal.alarm(LONGEST_READING)
        try:
            target.read(path)
        except NpllmError as error:
            if str(path) not in str(error) or len(str(error)) > 1000 + len(str(path)):
                raise AssertionError(f"{target.name} is not named, or at too great a length") from error
            refused += 1
        finally:
            signal.alarm(0)
    return mutations, refused


def main(folder: str, seed: str, mutations: str, seconds: str) -> None:
    """The process that reads."""
    from fuzzing_targets import all_targets  # this imports everything: the memory counts from here

    targets = all_targets(Path(folder))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(*fuzz(Path(folder), int(seed), int(mutations), float(seconds), targets))


if __name__ == "__main__":
    main(*sys.argv[1:])
