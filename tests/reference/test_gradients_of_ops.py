"""Every gradient of every operation, for random shapes, against finite differences.

Each test has a larger example beside the small random shapes. It has more rows and
columns than a kernel's tile or block, with a remainder.
"""

import op_checks
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
rates = st.sampled_from([0.0, 0.1, 0.5])
small = st.integers(1, 7)
norm_width = st.integers(3, 9)  # a norm of two nearly equal numbers is not smooth


def groups(largest):
    """Key/value heads K, and query heads per key/value head G."""
    return st.sampled_from([(K, G) for K in range(1, largest + 1) for G in range(1, largest + 1)])


@given(B=st.integers(1, 3), T=small, C=small, V=st.integers(1, 5), seed=seeds)
@example(B=3, T=40, C=20, V=5, seed=0)
def test_token_embedding(ops, B, T, C, V, seed):
    op_checks.check_embedding(ops, B, T, C, V, seed)


@given(B=st.integers(1, 3), T=small, C=small, first=st.integers(0, 3), after=st.integers(0, 2), seed=seeds)
@example(B=3, T=40, C=20, first=5, after=2, seed=0)
def test_token_and_position_embedding(ops, B, T, C, first, after, seed):
    op_checks.check_embedding(ops, B, T, C, 4, seed, n_positions=first + T + after, first_position=first)


@given(B=st.integers(1, 3), T=small, C=small, n_positions=small, seed=seeds)
def test_embedding_of_positions_in_any_order(ops, B, T, C, n_positions, seed):
    op_checks.check_embedding(ops, B, T, C, 4, seed, n_positions=n_positions, first_position=2, restarting=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epilogue", ["none", "gelu", "residual"])
@given(N=small, n_in=small, n_out=small, seed=seeds)
@example(N=70, n_in=37, n_out=51, seed=0)
def test_linear(ops, epilogue, bias, N, n_in, n_out, seed):
    op_checks.check_linear(ops, N, n_in, n_out, seed, epilogue=epilogue, bias=bias)


@given(N=small, F=small, seed=seeds)
@example(N=70, F=51, seed=0)
def test_gelu(ops, N, F, seed):
    op_checks.check_gelu(ops, N, F, seed)


@given(N=small, F=small, seed=seeds)
@example(N=70, F=51, seed=0)
def test_relu2(ops, N, F, seed):
    op_checks.check_relu2(ops, N, F, seed)


@given(N=small, F=small, seed=seeds)
@example(N=70, F=51, seed=0)
def test_swiglu(ops, N, F, seed):
    op_checks.check_swiglu(ops, N, F, seed)


@pytest.mark.parametrize("bias", [True, False])
@given(N=small, C=norm_width, seed=seeds)
@example(N=70, C=51, seed=0)
def test_layernorm(ops, bias, N, C, seed):
    op_checks.check_layernorm(ops, N, C, seed, bias=bias)


@given(N=small, C=norm_width, seed=seeds)
@example(N=70, C=51, seed=0)
def test_rmsnorm(ops, N, C, seed):
    op_checks.check_rmsnorm(ops, N, C, seed)


@pytest.mark.parametrize(("norm", "bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", False)])
@given(N=small, C=norm_width, seed=seeds)
@example(N=70, C=51, seed=0)
def test_add_norm(ops, norm, bias, N, C, seed):
    op_checks.check_add_norm(ops, N, C, seed, norm=norm, bias=bias)


@given(B=st.integers(1, 2), T=small, KG=groups(3), half=st.integers(1, 4), first=st.integers(0, 9), seed=seeds)
@example(B=2, T=70, KG=(2, 3), half=10, first=9, seed=0)
def test_rotary(ops, B, T, KG, half, first, seed):
    op_checks.check_rotary(ops, B, T, *KG, 2 * half, seed, first_position=first)


@given(B=st.integers(1, 2), T=small, KG=groups(3), D=norm_width, seed=seeds)
@example(B=2, T=70, KG=(2, 3), D=20, seed=0)
def test_qk_norm(ops, B, T, KG, D, seed):
    op_checks.check_qk_norm(ops, B, T, *KG, D, seed)


@given(shape=st.lists(small, min_size=1, max_size=3), rate=rates, seed=seeds)
@example(shape=[70, 51], rate=0.1, seed=0)
def test_dropout(ops, shape, rate, seed):
    op_checks.check_dropout(ops, shape, rate, seed)


@pytest.mark.parametrize("packed", [False, True])
@given(B=st.integers(1, 2), T=small, KG=groups(3), D=st.integers(1, 6), rate=rates, seed=seeds)
@example(B=1, T=150, KG=(2, 2), D=20, rate=0.0, seed=0)
@example(B=1, T=150, KG=(2, 2), D=20, rate=0.1, seed=0)
def test_attention(ops, packed, B, T, KG, D, rate, seed):
    assume(T != D)  # with T = D a transposed matrix product would have the right shape
    op_checks.check_attention(ops, B, T, *KG, D, seed, rate=rate, packed=packed)


@given(N=small, C=small, V=st.integers(2, 9), seed=seeds)
@example(N=300, C=10, V=300, seed=0)
def test_lm_head_loss(ops, N, C, V, seed):
    op_checks.check_lm_head_loss(ops, N, C, V, seed)


@given(N=small, C=small, V=st.integers(2, 9), in_other_parts=st.integers(0, 9), seed=seeds)
@example(N=300, C=10, V=300, in_other_parts=9, seed=0)
def test_lm_head_loss_and_grad(ops, N, C, V, in_other_parts, seed):
    op_checks.check_lm_head_loss_and_grad(ops, N, C, V, N + in_other_parts, seed)


@pytest.mark.parametrize("with_entropy", [True, False])
@given(N=small, C=small, V=st.integers(2, 9), seed=seeds)
@example(N=300, C=10, V=300, seed=0)
def test_lm_head_policy(ops, with_entropy, N, C, V, seed):
    op_checks.check_lm_head_policy(ops, N, C, V, seed, with_entropy=with_entropy)
