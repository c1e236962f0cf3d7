"""A worker's side of the pipe; imports the standard library only.

Each request and each reply is one line of JSON:

    {"job": "train", "mode": "eager", ...}   sets the job up; the reply holds what it
                                             computed, which is then checked
    {"repeats": 20}                          does the work 20 times; the reply holds the
                                             seconds of one time, and the peak memory
                                             since the job was set up

The reply to a request that fails is {"error": "one line"}.
"""

import hashlib
import json
import os
import resource
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROCESS = Path("/proc/self")
Job = Callable[..., tuple[dict[str, Any], Callable[[], object]]]


def serve(jobs: dict[str, Job]) -> None:
    """Answer requests until stdin ends.

    A job takes settings; it returns facts and a function that does the work once.
    """
    facts = {"imported_bytes": peak_memory()}
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries must not mix with the replies
    work: Callable[[], object] = object
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "job" in request:
                computed, work = jobs[request.pop("job")](**request)
                reply = facts | computed
                forget_peak_memory()
            else:
                reply = {"seconds": seconds_of(work, request["repeats"]), "peak_bytes": peak_memory()}
        except Exception as error:  # any failure; the other side prints it
            message = str(error).strip().partition("\n")[0]
            reply = {"error": f"{type(error).__name__}: {message[:200]}"}
        print(json.dumps(reply), file=replies, flush=True)


def fingerprint(documents: list) -> dict[str, Any]:
    """Return facts about token ids, by which two encoders are compared.

    documents: a sequence of ids each.
    """
    digest = hashlib.sha256()
    for ids in documents:
        digest.update(array("I", ids).tobytes() + b"|")
    return {"n_tokens": sum(map(len, documents)), "sha256": digest.hexdigest()}


# Seconds. Sleeping threads often wake on the core of the thread that wakes them, and
# the system takes up to this long to move them to a free core. Until then the speed is
# half, which is not the speed of a program that runs for minutes.
SETTLE = 0.1


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Return the mean seconds of one call among `repeats`.

    Short work is done for SETTLE seconds first.
    """
    settled = time.perf_counter() + SETTLE
    while repeats > 1:
        work()
        if time.perf_counter() >= settled:
            break
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def forget_peak_memory() -> None:
    """Reset `peak_memory` where the system can (Linux).

    So the memory of initialising and compiling does not count.
    """
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the most bytes of RAM that this process has held at once."""
    status = PROCESS / "status"
    if status.exists():  # Linux, where ru_maxrss includes the peak of the parent process
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
