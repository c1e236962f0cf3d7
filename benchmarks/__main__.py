"""python -m benchmarks"""

import os
import sys

if os.environ.pop("OPENBLAS_CORETYPE", None):  # OpenBLAS reads it when NumPy is imported
    print("OPENBLAS_CORETYPE is set and would choose NumPy's BLAS for another processor; starting again without it.")
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])

try:
    from benchmarks.cli import main
except ModuleNotFoundError as error:
    print(f"benchmarks: {error.name} is not installed; pip install 'npllm[bench]' installs it.", file=sys.stderr)
    sys.exit(2)

sys.exit(main())
