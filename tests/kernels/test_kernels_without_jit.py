"""With NUMBA_DISABLE_JIT=1 the kernels run as plain Python, and are right.

So a reader can step through them.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

PROGRAM = """
import numpy as np
import npllm.kernels
from kernel_cases import CASES, Sizes
from test_kernels_equal_reference import assert_equals_reference

assert not hasattr(npllm.kernels.gelu.gelu, "py_func"), "Numba compiles in spite of NUMBA_DISABLE_JIT"
for case in CASES:
    for dtype in (np.float32, np.float64):
        assert_equals_reference(case, Sizes(B=1, T=5, K=1, G=2, D=4, F=3, V=6), seed=1, dtype=dtype)
print("right")
"""


def test_kernels_are_right_without_jit():
    path = os.pathsep.join([str(ROOT), str(HERE), str(HERE.parent)])
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.stdout == "right\n", result.stderr
