"""Reads randomly mutated copies of good files, in a process of its own.

Each file must be refused with a typed error that names it, or be read with its old
meaning.

The process has a memory limit and a time limit for each file. A crash of the HDF5
library, a file that asks for terabytes and an endless loop are findings, just as a
traceback is. Each file is written before it is read, so the file that caused a finding
is there afterwards.

    run_fuzzer(folder, seed, seconds=60)
        start that process and wait for it; used by the tests and by tools/fuzz.py
    python fuzzing.py FOLDER SEED MUTATIONS SECONDS
        that process
"""

import copy
import faulthandler
import io
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import npllm
from npllm.data.shards import read_shard, write_shard
from npllm.errors import NpllmError
from npllm.model import Architecture
from npllm.runs.checkpoint import (
    USER_BLOCK,
    checkpoint_image,
    load_checkpoint,
    model_from_checkpoint,
    restore_checkpoint,
    seal,
)
from npllm.tokenizer import Tokenizer, byte_tokenizer, pretokenize, train_bpe
from npllm.tokenizer.tokenizer_json import to_json
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.loop import build_state
from npllm.training.state import LoopState

MEMORY = 400 << 20  # bytes beyond those of the process after all imports; an unlimited read may take gigabytes
LONGEST_READING = 10  # seconds of processor time
LONGEST_WAIT = 600  # seconds of a wait, such as for a pipe without a writer; far above any reading on a busy machine
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(npllm.__path__[0]).parent), "NUMBA_NUM_THREADS": "1"}

INTERESTING_BYTES = (0, 1, 0x20, 0x7F, 0x80, 0xFF)
ODD_VALUES = (
    *(None, True, 0, 1, -1, 3, 2**31, 2**62, 2**63, 2**64, 10**12, 10**400, 0.0, 0.5, 1.0, 1e308, 5e-324),
    *("", "0", "x", "gelu", "rotary", "float64", "\0", "\ud800", "../../x", "z" * 100_000, "(?:a|a)+$", "(?r)a{9}"),
    *([], {}, [[]], [None], ["params"], {"type": "BPE"}, [0] * 1000, [[1.0, 2.0] for _ in range(1000)]),
)


class Report(NamedTuple):
    """The result of a run of the fuzzer.

    failure: what was printed when a reading failed; "" if none did.
    file: the file whose reading failed.
    """

    mutations: int
    refused: int
    failure: str
    file: Path | None


class Target(NamedTuple):
    """A kind of file.

    make: returns a mutated content.
    read: reads the file and checks that what it returns means what it meant before.
    """

    name: str
    make: Callable[[random.Random], bytes]
    read: Callable[[Path], None]


def run_fuzzer(folder: Path, seed: int, *, mutations: int = 10**9, seconds: float = 1e9) -> Report:
    """Read mutated files until a limit is reached or a reading fails; the report.

    The files are written into `folder`.
    """
    command = [sys.executable, "-X", "faulthandler", __file__, str(folder), str(seed), str(mutations), str(seconds)]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    counts = [int(word) for word in process.stdout.split()[-2:]] or [0, 0]
    if process.returncode == 0:
        return Report(*counts, "", None)
    last = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=None)
    return Report(*counts, process.stderr or f"it ended with code {process.returncode}", last)


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The data with one to three changes; `others` are contents to take pieces from."""
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
        case 7:  # a piece of the other file at the same offset, or all of it from there on
            end = rng.choice((at + size, at + 64, at + 512, len(other)))
            changed[at:end] = other[at:end]
    return bytes(changed)


def mutated_json(rng: random.Random, document: Any) -> Any:
    """A copy of a JSON document with one to three values changed.

    A value is replaced, deleted, duplicated, or overwritten by another one's.
    """
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
    """(container, key) of every value in a JSON document.

    Long containers give their first 20 keys, so that each kind of value is met often.
    """
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys[:20] for place in ((node, key), *_places(node[key]))]


def tiny_state(seed: int) -> LoopState:
    """A tiny training state in which every field of the counters is in use."""
    architecture = Architecture(n_layer=1, n_head=1, n_embd=2, block_size=2)
    state = build_state(RunConfig(model=architecture, train=TrainConfig(seed=seed)), vocab_size=3)
    state.detector.accept(2.0 + seed, 0.5)
    state.optimizer.state["adam_m"][:] = 0.25 + seed
    return state


def checkpoint_file(description: dict[str, Any], arrays: dict[str, np.ndarray], libver: str = "v108") -> bytes:
    """A checkpoint's content, of this description and these arrays, valid or not."""
    image = io.BytesIO()
    with h5py.File(image, "w", libver=(libver, "v108"), userblock_size=USER_BLOCK) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs["state"] = np.bytes_(json.dumps(description))
    return sealed(image.getvalue())


def sealed(content: bytes) -> bytes:
    """The content of a checkpoint, with the right SHA-256 of the rest at its start."""
    image = bytearray(content.ljust(USER_BLOCK, b"\0"))
    seal(memoryview(image))
    return bytes(image)


def unusual_hdf5() -> bytes:
    """A file of HDF5 features that no shard or checkpoint uses: a donor of pieces."""
    image = io.BytesIO()
    with h5py.File(image, "w", libver="latest", userblock_size=USER_BLOCK) as file:
        file.create_dataset("params", data=np.zeros(4096, "<f4"), chunks=(64,), compression="gzip", shuffle=True)
        file.create_dataset("adam_m", (100,), h5py.vlen_dtype(np.float32), maxshape=(None,))
        file["adam_v"] = h5py.ExternalLink("step-00000000.h5", "/adam_v")
        file["tokens"] = h5py.SoftLink("/params")
        file.create_dataset("document_starts", (4,), h5py.ref_dtype)
        layout = h5py.VirtualLayout((8,), "<f4")
        layout[:] = h5py.VirtualSource("step-00000000.h5", "params", (8,))
        file.create_virtual_dataset("velocity", layout)
        file.attrs["state"] = "text of any length"
        for number in range(20):  # more than fit into the header of the group
            file.attrs[f"attribute {number}"] = np.zeros(3)
    return image.getvalue()


def checkpoint_targets() -> list[Target]:
    """Three kinds of mutated checkpoints.

    bytes.h5: changed bytes behind the old SHA-256.
    sealed.h5: changed bytes behind a SHA-256 that is right again.
    description.h5: a changed description or array, with a right SHA-256.
    """
    states = [tiny_state(seed) for seed in (0, 1)]
    good, other = (sealed(bytes(checkpoint_image(state, 2.5))) for state in states)
    donors = [other, unusual_hdf5()]
    state = states[0]
    description = json.loads(h5py.File(io.BytesIO(good)).attrs["state"])
    # HDF5's first format has no checksums of its own, so the reader gets further in it.
    unchecked = checkpoint_file(description, state.arrays(), libver="earliest")

    def read(path: Path) -> None:
        model_from_checkpoint(path)
        restore_checkpoint(path, state)

    def read_and_compare(path: Path) -> None:
        load_checkpoint(path)
        assert path.read_bytes() in (good, other)

    def described(rng: random.Random) -> bytes:
        arrays = {name: array.copy() for name, array in states[1].arrays().items()}
        name = rng.choice(list(arrays))
        match rng.randrange(8):
            case 0:
                arrays[name][rng.randrange(len(arrays[name]))] = rng.choice((np.nan, np.inf, 3e38))
            case 1:
                arrays[name] = rng.choice((arrays[name][:-1], arrays[name][None], arrays[name].astype("<f8")))
            case 2:
                del arrays[name]
        return checkpoint_file(mutated_json(rng, description), arrays)

    return [
        Target("bytes.h5", lambda rng: mutated(rng, good, donors), read_and_compare),
        Target("sealed.h5", lambda rng: sealed(mutated(rng, rng.choice((good, unchecked)), donors)), read),
        Target("description.h5", described, read),
    ]


def shard_target(folder: Path) -> Target:
    """Shards with changed bytes."""
    documents = [np.arange(9), np.arange(5)]
    for name, some in (("good.h5", documents), ("other.h5", documents[::-1])):
        hashes = {"tokenizer_sha256": "a" * 64, "source_sha256": "b" * 64}
        write_shard(folder / name, some, vocab_size=300, eot_id=299, n_bytes=20, **hashes)
    originals = [read_shard(folder / name) for name in ("good.h5", "other.h5")]
    good, donors = (folder / "good.h5").read_bytes(), [(folder / "other.h5").read_bytes(), unusual_hdf5()]

    def read(path: Path) -> None:
        shard = read_shard(path)
        original = next(original for original in originals if original.sha256 == shard.sha256)
        assert shard[2:] == original[2:]
        np.testing.assert_array_equal(shard.tokens, original.tokens)
        np.testing.assert_array_equal(shard.document_starts, original.document_starts)

    return Target("shard.h5", lambda rng: mutated(rng, good, donors), read)


def tokenizer_targets() -> list[Target]:
    """Tokenizers with changed bytes, and with changed values in their JSON."""
    text = "abab, the cat's 12 hats é"
    tokenizer = train_bpe([text], 262)
    good, other = to_json(tokenizer.vocabulary), to_json(byte_tokenizer().vocabulary)
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    document = json.loads(good) | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}}
    pretokenize.LEAST_TIME = 1.0  # seconds

    def read(path: Path) -> None:
        tokenizer = Tokenizer.load(path)
        try:
            ids = tokenizer.encode(text, allowed_special=True)
        except NpllmError:  # about the text: the vocabulary lacks a character, or the pattern is too slow
            return
        assert tokenizer.decode(ids) == text

    def restructured(rng: random.Random) -> bytes:
        return json.dumps(mutated_json(rng, document)).encode()

    return [
        Target("bytes.json", lambda rng: mutated(rng, good, [other]), read),
        Target("values.json", restructured, read),
    ]


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """End this process with a traceback if the block takes longer than `seconds`.

    Only this process's processor time counts, so other load on the machine does not
    matter. A block that waits for LONGEST_WAIT ends the process too.
    """
    faulthandler.register(signal.SIGVTALRM, file=sys.__stderr__, chain=True)  # chain: then the signal ends the process
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    faulthandler.dump_traceback_later(LONGEST_WAIT, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def fuzz(folder: Path, seed: int, mutations: int, seconds: float, targets: list[Target]) -> tuple[int, int]:
    """Mutate and read files, each target in turn.

    Returns the number of files that were read and how many of them were refused. An
    error that is not typed or does not name the file is raised. A reading that takes
    too long ends the process.
    """
    rng, end, refused = random.Random(seed), time.monotonic() + seconds, 0
    for count, target in zip(range(mutations), itertools.cycle(targets), strict=False):
        if time.monotonic() > end:
            return count, refused
        path = folder / target.name
        path.write_bytes(target.make(rng))
        try:
            with processor_time(LONGEST_READING):
                target.read(path)
        except NpllmError as error:
            if str(path) not in str(error) or len(str(error)) > 1000 + len(str(path)):
                raise AssertionError(f"{target.name} is not named, or at too great a length") from error
            refused += 1
    return mutations, refused


def main(folder: str, seed: str, mutations: str, seconds: str) -> None:
    """The process that reads."""
    targets = [*checkpoint_targets(), shard_target(Path(folder)), *tokenizer_targets()]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(*fuzz(Path(folder), int(seed), int(mutations), float(seconds), targets))


if __name__ == "__main__":
    main(*sys.argv[1:])
