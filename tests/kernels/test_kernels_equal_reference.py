"""Each kernel computes what the reference operation of the same name computes.

float64: results agree to 1e-12 of their largest element. Only the order of the sums
differs. They have a few hundred terms of order one, so the errors are about 1e-14, and
any mistake in a formula is above 1e-5.

float32: the reference computes in float64 from the same float32 inputs. The kernel must
agree to 4e-6, which is 34 units in the last place of the largest element. (The
reference in float32 is as far off.) A norm multiplies the rounding errors of a row by
its rstd, which is up to 316 in a constant row, so the bound is multiplied too.
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_cases import CASES, Draw, Sizes

import npllm.kernels
from npllm.model.backends import operations_of

TOLERANCE = {np.float64: 1e-12, np.float32: 4e-6}

# The sizes lie around the edges of the kernels' parts: rows around chunks of 64,
# sequences around blocks of 32, head widths around a panel of 32.
SIZES = st.builds(
    Sizes,
    B=st.integers(1, 3),
    T=st.integers(1, 70),
    K=st.integers(1, 2),
    G=st.integers(1, 3),
    D=st.integers(1, 35),
    F=st.integers(1, 50),
    V=st.integers(1, 80),
)


def assert_equals_reference(case, sizes, seed, dtype):
    computed = CASES[case](npllm.kernels, sizes, Draw(seed, dtype), np.empty)
    expected = CASES[case](operations_of("reference"), sizes, Draw(seed, dtype, compute_dtype=np.float64), np.empty)
    amplification = np.max(expected.get("rstd", 1.0), initial=1.0)
    for name, value in expected.items():
        atol = TOLERANCE[dtype] * amplification * np.abs(value).max(initial=1.0)
        np.testing.assert_allclose(computed[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES)
@given(sizes=SIZES, seed=st.integers(0, 2**32))
@example(sizes=Sizes(B=1, T=1, K=1, G=1, D=1, F=1, V=1), seed=1)
@example(sizes=Sizes(B=3, T=100, K=1, G=3, D=33, F=100, V=65), seed=2)  # flat arrays of several chunks
def test_kernel_equals_reference(case, dtype, sizes, seed):
    assert_equals_reference(case, sizes, seed, dtype)
