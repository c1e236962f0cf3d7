"""No bit of any result depends on the number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# All thread counts run in one process, because Numba fixes their maximum when it
# starts. The BLAS has one thread: its own sums are not under test.
PROGRAM = """
import hashlib, json
import numba, numpy as np
import npllm.kernels
from kernel_cases import CASES, Draw, Sizes

sizes = Sizes(B=3, T=100, K=2, G=2, D=33, F=150, V=65)  # five chunks of rows, several of flat arrays, 12 heads

def bits(case):
    results = CASES[case](npllm.kernels, sizes, Draw(1, np.float32), np.empty)
    return {name: hashlib.sha256(np.ascontiguousarray(value)).hexdigest() for name, value in results.items()}

report = {"layer_threads": numba.config.NUMBA_NUM_THREADS, "runs": []}
for threads in (1, 2, 3, 4):
    numba.set_num_threads(threads)
    report["runs"].append({case: bits(case) for case in CASES})
print(json.dumps(report))
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    environment = os.environ | {
        "NUMBA_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "VECLIB_MAXIMUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
    }
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout
    report = json.loads(output)
    assert report["layer_threads"] == 4
    one, *others = report["runs"]
    for threads, run in enumerate(others, start=2):
        differing = [f"{case}.{name}" for case in one for name in one[case] if run[case][name] != one[case][name]]
        assert not differing, f"with {threads} threads"
