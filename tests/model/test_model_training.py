"""Training steps learn, stay float32, and agree between backends and thread counts."""

import numba
import numpy as np
import pytest
from model_cases import every_architecture, gradients_of, patched, random_batch, set_weights_of_order_one, small_config

from npllm.model import GPT
from npllm.optim import SGD, AdamW

on_kernels = pytest.mark.parametrize("ops", ["kernels"], indirect=True)


@every_architecture
def test_one_batch_is_learned_by_heart(backend, architecture):
    config = small_config(n_embd=32, block_size=16, vocab_size=20, **architecture)
    model = GPT(config, backend=backend)
    optimizer = AdamW(model, lr=5e-3, weight_decay=0.0)
    batch = random_batch(config, B=4, T=16, ignored=0.0)
    for _ in range(120):
        model.loss_and_grad(*batch)
        optimizer.step(grad_clip=1.0)
    assert model.loss(*batch) < 0.05


def assert_float32(value, where):
    """Assert that there is no float64 array or NumPy scalar, in tuples or lists either.

    One such scalar makes everything after it float64.
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
        assert value.dtype == np.float32, f"{value.dtype} {where}"
    elif isinstance(value, tuple | list):
        for item in value:
            assert_float32(item, where)


def with_dtypes_asserted(ops):
    def asserting(name, function):
        def wrapper(*args, **keywords):
            assert_float32([*args, *keywords.values()], f"given to {name}")
            result = function(*args, **keywords)
            assert_float32(result, f"returned by {name}")
            return result

        return wrapper

    functions = {name: getattr(ops, name) for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    return patched(ops, **{name: asserting(name, function) for name, function in functions.items()})


@every_architecture
@pytest.mark.parametrize("rule", [AdamW, SGD])
def test_float32_stays_float32(backend, architecture, rule):
    """No array between operations is float64, which would halve the speed silently."""
    config = small_config(dropout=0.2, **architecture)
    model = GPT(config, backend=backend)
    model.ops = with_dtypes_asserted(model.ops)
    optimizer = rule(model, weight_decay=0.1)
    batch = random_batch(config, B=3, T=5)
    for step in range(2):
        loss = model.loss_and_grad(*batch, step=step)
        norm = optimizer.step(grad_clip=0.1)
    assert model.logits(batch.tokens).dtype == model.negative_log_likelihood(*batch).dtype == np.float32
    assert type(loss) is type(norm) is type(model.loss(*batch)) is float
    for flat in (model.params.flat, model.grads.flat, *optimizer.state.values()):
        assert flat.dtype == np.float32
    assert model.params["token_embedding"].dtype == np.float32


def test_a_float64_scalar_is_caught(backend):
    """The control of the test above: since NumPy 2, `x / np.sqrt(D)` does this."""
    config = small_config()
    model = GPT(config, backend=backend)
    ops = model.ops

    def attention_forward(qkv, *args, **keywords):
        y, cache = ops.attention_forward(qkv, *args, **keywords)
        return y * np.float64(1.0) if np.__version__ >= "2" else y.astype(np.float64), cache

    model.ops = with_dtypes_asserted(patched(ops, __all__=ops.__all__, attention_forward=attention_forward))
    with pytest.raises(AssertionError, match="float64 returned by attention_forward"):
        model.logits(random_batch(config, B=1, T=3).tokens)


def update_three_times(config, rule, **model_options):
    """The flat parameters before and after three updates."""
    model = GPT(config, **model_options)
    before = model.params.flat.copy()
    optimizer = rule(model)
    for step in range(3):
        model.loss_and_grad(*random_batch(config, B=4, T=17, seed=step), step=step)
        optimizer.step(grad_clip=1.0)
    return before, model.params.flat


@every_architecture
@pytest.mark.parametrize(
    "rule",
    [
        lambda model: SGD(model, lr=0.1),
        # A key's bias has a gradient of zero up to rounding. Adam with a small eps
        # would follow the sign of that rounding.
        lambda model: AdamW(model, eps=1e-3),
    ],
    ids=["sgd", "adamw"],
)
@on_kernels
def test_backends_agree_in_float32(ops, backend, architecture, rule):
    """After three updates the parameters agree to 1e-5 of what the updates changed.

    One rounding of float32 is 6e-8.
    """
    config = small_config(n_embd=48, n_head=4, block_size=20, vocab_size=70, dropout=0.1, **architecture)
    before, ours = update_three_times(config, rule, backend=backend)
    _, reference = update_three_times(config, rule, backend="reference")
    assert np.linalg.norm(ours - reference) <= 1e-5 * np.linalg.norm(reference - before)


@every_architecture
@on_kernels
def test_backends_agree_in_float64(ops, backend, architecture):
    """Every gradient agrees at sizes above a kernel's tile and no multiple of it."""
    config = small_config(n_embd=132, n_head=6, block_size=150, vocab_size=1030, dropout=0.1, **architecture)
    batch = random_batch(config, B=3, T=141)
    results = []
    for name in (backend, "reference"):
        model = GPT(config, dtype="float64", backend=name)
        set_weights_of_order_one(model, seed=8)
        results.append(gradients_of(model, batch, step=2, first_row=1))
    (loss, gradients), (reference_loss, reference_gradients) = results
    assert loss == pytest.approx(reference_loss, rel=1e-13)
    for name, gradient in reference_gradients.items():
        error = np.linalg.norm(gradients[name] - gradient) / np.linalg.norm(gradient)
        assert error <= 1e-11, f"the gradient of {name} differs by {error:.1e}"


@every_architecture
@on_kernels
def test_same_bits_for_any_number_of_threads(ops, backend, architecture):
    config = small_config(n_embd=48, n_head=4, block_size=20, vocab_size=70, dropout=0.1, **architecture)
    available = numba.get_num_threads()
    results = set()
    try:
        for threads in range(1, min(available, 4) + 1):
            numba.set_num_threads(threads)
            results.add(update_three_times(config, AdamW, backend=backend)[1].tobytes())
    finally:
        numba.set_num_threads(available)
    assert len(results) == 1
