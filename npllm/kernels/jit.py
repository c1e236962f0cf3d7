"""How the kernels are compiled, and how their threads wait.

Six decorators, from the outside inwards:

    parallel    called from Python: splits a loop over chunks, rows or workers between the threads
    serial      called from Python as well as by kernels: the work on one chunk, or what is too little to split
    part        called by kernels only
    inlined     a few lines that must melt into the loop around them for it to be vectorised
    summing     the same, for a sum over one row
    replacing   what kernels call in place of a Python function

What makes the results the same for any number of threads: a `prange` iteration owns the outputs that it writes, and
what it computes does not depend on where the threads split the range. So an iteration is a chunk of fixed size, and a
sum over chunks is stored as partial sums, one per chunk, which one thread adds from first to last.

`contract` lets the compiler turn a product and a sum into one FMA. `reassoc`, in `summing` alone, lets it spread one
row's sum over the lanes of a vector register: an order fixed when the kernel is compiled. Neither assumes that NaN and
infinity do not occur. The error model "numpy" makes x / 0 infinite: Python's exception is a branch in every loop.

With NUMBA_DISABLE_JIT=1 every kernel is plain Python, to step through.
"""

import os
from contextlib import suppress
from pathlib import Path

from numba import njit
from numba.extending import overload

from npllm.kernels.part_compiler import ParallelCompiler, PartCompiler

# A thread that finds nothing to do should soon sleep and not spin: two processes on the same cores then share them
# evenly, instead of each waiting for a thread that cannot run because the other's spins. A few microseconds of spinning
# bridge the pause between two kernels: to wake a thread takes longer than many a small kernel.
# libgomp reads the variables when Numba loads it, which is at the first parallel call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Without the entry points for C, and for Python where it does not call, compiling takes a fifth less time.
_COMMON = {"error_model": "numpy", "no_cfunc_wrapper": True}
_CALLED_BY_KERNELS = _COMMON | {"no_cpython_wrapper": True, "pipeline_class": PartCompiler}


def parallel(kernel):
    """Compile with the loops over `prange` split, and nothing else.

    Numba would also split array assignments, and one inside a `prange` loop then starts the threads once more in every
    iteration: attention took a hundred times as long.
    """
    others = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
    options = {"prange": True} | dict.fromkeys(others, False)
    return njit(cache=True, parallel=options, fastmath={"contract"}, pipeline_class=ParallelCompiler, **_COMMON)(kernel)


serial = njit(cache=True, fastmath={"contract"}, **_COMMON)
part = njit(fastmath={"contract"}, **_CALLED_BY_KERNELS)
inlined = njit(forceinline=True, fastmath={"contract"}, **_CALLED_BY_KERNELS)
summing = njit(forceinline=True, fastmath={"contract", "reassoc"}, **_CALLED_BY_KERNELS)


def replacing(python_function, *, inline=True):
    """Call the decorated function's result, chosen by the types of the arguments, where kernels call the other."""
    options = _CALLED_BY_KERNELS | {"forceinline": inline, "fastmath": {"contract"}}
    return overload(python_function, jit_options=options)


def discard_stale_caches(folder):
    """Delete the compiled kernels of a folder and its subfolders that are older than any source file there.

    Numba compares a cached kernel with the file of the kernel only, not with those of the functions inlined into it.
    """
    newest_source = max(source.stat().st_mtime for source in folder.rglob("*.py"))
    for index in folder.rglob("__pycache__/*.nbi"):
        with suppress(FileNotFoundError):  # another process does the same
            if index.stat().st_mtime < newest_source:
                index.unlink()


discard_stale_caches(Path(__file__).parent)
