"""How the kernels are compiled, and how their threads wait.

The seven decorators, from the outermost to the innermost function:

    parallel    called from Python: splits a loop over chunks, rows or workers
                between the threads
    serial      called from Python and by kernels: does the work of one chunk, or
                work that is too small to split
    unlocked    the same, while other threads of Python go on
    part        called by kernels only
    inlined     a few lines that must be inlined into a loop, so that the loop is
                vectorised
    summing     the same, for a sum over one row
    replacing   gives kernels another function in place of a Python function

Results are the same for any number of threads. Each `prange` iteration owns the outputs
that it writes, and its result does not depend on where the threads split the range. For
this reason an iteration is a chunk of fixed size. A sum over chunks is stored as one
partial sum per chunk, and one thread adds these from first to last.

The flag `contract` lets the compiler fuse a product and a sum into one FMA. The flag
`reassoc`, which only `summing` has, lets it spread the sum of one row over the lanes of
a vector register; that order is fixed when the kernel is compiled. Neither flag assumes
that NaN and infinity do not occur. With the error model "numpy", x / 0 is infinite;
Python's exception would need a branch in every loop.

With NUMBA_DISABLE_JIT=1 every kernel runs as plain Python, so that a debugger can step
through it.
"""

import os

from numba import njit
from numba.extending import overload

from npllm.kernels.compiled_cache import keep_compiled
from npllm.kernels.part_compiler import ParallelCompiler, PartCompiler

# An idle thread should soon sleep instead of spinning. If two processes share the cores
# and their idle threads spin, each process waits for threads that cannot run. Waking a
# thread takes longer than many a small kernel, though, so a thread spins for about as
# long before it sleeps. libgomp reads these variables when Numba loads it, which is at
# the first parallel call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

# Entry points for C, and for Python where only kernels call, would lengthen compiling.
_COMMON = {"error_model": "numpy", "no_cfunc_wrapper": True}
_CALLED_BY_KERNELS = _COMMON | {"no_cpython_wrapper": True, "pipeline_class": PartCompiler}


def parallel(kernel):
    """Compile a kernel and split its loops over `prange`, and nothing else.

    By default Numba also splits array assignments. An assignment inside a `prange` loop
    would then start the threads once more in every iteration, which is many times
    slower.
    """
    others = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
    options = {"prange": True} | dict.fromkeys(others, False)
    compiler = njit(parallel=options, fastmath={"contract"}, pipeline_class=ParallelCompiler, **_COMMON)
    return keep_compiled(compiler(kernel))


def serial(kernel):
    """Compile a kernel that one thread runs."""
    return keep_compiled(njit(fastmath={"contract"}, **_COMMON)(kernel))


def unlocked(kernel):
    """Compile a kernel that one thread runs without Python's global lock. Its caller
    sees to it that no other thread changes the arrays."""
    return keep_compiled(njit(nogil=True, fastmath={"contract"}, **_COMMON)(kernel))


part = njit(fastmath={"contract"}, **_CALLED_BY_KERNELS)
inlined = njit(forceinline=True, fastmath={"contract"}, **_CALLED_BY_KERNELS)
summing = njit(forceinline=True, fastmath={"contract", "reassoc"}, **_CALLED_BY_KERNELS)


def replacing(python_function, *, inline=True):
    """Return a decorator that gives kernels another function for a Python function.

    The decorated function takes the arguments' types and returns the function to call.
    """
    options = _CALLED_BY_KERNELS | {"forceinline": inline, "fastmath": {"contract"}}
    return overload(python_function, jit_options=options)
