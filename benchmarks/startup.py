"""`benchmarks startup`: how long a user waits before anything happens.

Every time is that of a fresh process. The first training step has ended when the run's
metrics.jsonl has its first line. Cold means that the folder of Numba's compiled kernels
is empty, warm that an earlier run has filled it. The job has the default recipe's model
and batch. Its text is small and its tokenizer needs no training, because their time
depends on the text.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.peers.process import ROOT
from benchmarks.tables import Row, build_table
from benchmarks.timing import spread

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(5000))
DEFAULT_JOB = ("--data.tokenizer", "byte", "--train.steps", "2")
IMPORT = "import npllm"
CONSTRUCT = "import npllm; npllm.GPT(npllm.ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=8))"


def measure(job: tuple[str, ...], rounds: int) -> list[Row]:
    """Return a row for each wait. job: options of `npllm pretrain`.

    The kernels are compiled only once.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, cache = Path(folder, "text.txt"), Path(folder, "cache")
        text.write_text(TEXT)
        options = ("--data.source", str(text), *job)

        def first_step() -> float:
            return seconds_to_first_step(options, Path(tempfile.mkdtemp(dir=folder), "run"), cache)

        return [
            _row("import npllm", rounds, lambda: seconds_of_code(IMPORT)),
            _row("import npllm, construct a GPT", rounds, lambda: seconds_of_code(CONSTRUCT)),
            _row("pretrain to its first step, cold", 1, first_step),
            _row("pretrain to its first step, warm", rounds, first_step),
        ]


def _row(what: str, rounds: int, measure_once: Callable[[], float]) -> Row:
    seconds = [measure_once() for _ in range(rounds)]
    return {"what": what, "seconds": median(seconds), "spread": spread(seconds), "rounds": rounds}


def seconds_of_code(code: str) -> float:
    """Return the seconds of statements in a fresh interpreter, after its own start."""
    program = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def seconds_to_first_step(options: tuple[str, ...], run: Path, cache: Path) -> float:
    """Return the seconds from the start of `npllm pretrain` to its first step.

    The process is then killed. cache: the folder of compiled kernels.
    """
    metrics = run / "metrics.jsonl"
    command = [sys.executable, "-m", "npllm", "pretrain", *options, "--out", str(run)]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while not (metrics.exists() and b"\n" in metrics.read_bytes()):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"npllm pretrain ended before its first step: {log.read().strip()}")
                time.sleep(0.002)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
    first = json.loads(metrics.read_text().partition("\n")[0])
    if first["step"] != 1 or not isfinite(first["loss"]):
        raise SystemExit(f"The first line of metrics.jsonl is not that of a first step: {first}")
    return seconds


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "what": ("what", "{}"),
        "seconds": ("seconds", "{:.3f}"),
        "spread": ("spread", "±{:.0%}"),
        "rounds": ("rounds", "{:d}"),
    }
    return [build_table("start-up, each in a fresh process", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return no lines: nothing is compared with a peer."""
    return []
