"""A kernel is optimized once, however many parts it has."""

import numpy as np
import pytest
from numba import config, prange, typeof
from numba.core.codegen import CPUCodeLibrary

from npllm.kernels.jit import parallel, part


@part
def add_one(x, i):
    x[i] += 1.0


def add_one_to_all(x):
    for i in prange(len(x)):
        add_one(x, np.int64(i))


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_only_the_kernel_itself_is_optimised(monkeypatch):
    """Only the kernel's own library goes through LLVM's optimizer.

    The rule depends on names that Numba gives the libraries of a parallel loop. If
    Numba changed them, compiling would become slow again without an error.
    """
    optimised, original = [], CPUCodeLibrary._optimize_final_module

    def optimize(library):
        optimised.append(library.name)
        original(library)

    monkeypatch.setattr(CPUCodeLibrary, "_optimize_final_module", optimize)
    kernel, x = parallel(add_one_to_all), np.zeros(100)
    kernel.compile((typeof(x),))
    assert [name for name in optimised if name != "nrt"] == ["add_one_to_all"]  # "nrt": Numba's own runtime
    kernel(x)
    assert np.all(x == 1.0)
