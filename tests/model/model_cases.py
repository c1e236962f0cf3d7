"""Small models with weights of order one, batches for them, and their training loss."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from order_one import fill_with_order_one

from npllm.model import GPT, ModelConfig
from npllm.model.checked_ids import checked_batch

GPT_2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu"}
LLAMA = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu"}
LLAMA |= {"n_kv_head": 1, "bias": False, "tie_embeddings": False}
RELU2 = GPT_2 | {"mlp": "relu2"}
# Sizes that do not follow from the width, and numbers that are not the usual ones.
QWEN = LLAMA | {"qk_norm": True, "head_dim": 6, "n_inner": 20, "norm_eps": 1e-2, "rope_theta": 50.0}
EVERY = {"gpt2": GPT_2, "llama": LLAMA, "relu2": RELU2, "qwen": QWEN}
every_architecture = pytest.mark.parametrize("architecture", EVERY.values(), ids=EVERY.keys())


def small_config(**changes) -> ModelConfig:
    defaults = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
    return ModelConfig(**(defaults | changes))


def set_weights_of_order_one(model: GPT, seed: int) -> None:
    """Fill the model's parameters in place with weights of order one."""
    fill_with_order_one(model.params, seed)


class Batch(NamedTuple):
    tokens: np.ndarray  # (B, T)
    targets: np.ndarray  # (B, T)


def random_batch(config: ModelConfig, B: int, T: int, seed: int = 0, ignored: float = 0.25) -> Batch:
    """Uniform tokens and targets; a share of the targets is -1, but never the first."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    targets[rng.random((B, T)) < ignored] = -1
    targets[0, 0] = max(targets[0, 0], 0)
    return Batch(tokens, targets)


def training_loss(model: GPT, batch: Batch, *, n_targets: int, step: int = 0, first_row: int = 0) -> float:
    """The loss of `loss_and_grad`, from a forward alone in a third of the time."""
    tokens, targets = checked_batch(*batch, model.config)
    model.arena.reset()
    context = model._context(tokens.shape[1], rate=model.config.dropout, step=step, first_row=first_row)
    hidden, *_ = model._forward(context, tokens)
    head = model.params[model.head_name]
    nll, _ = model.ops.lm_head_loss_forward(hidden, head, targets.reshape(-1), empty=model.arena.empty)
    return float(nll.sum()) / n_targets


def gradients_of(model: GPT, batch: Batch, **how) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and a copy of each parameter's gradient, by name."""
    model.grads.flat[:] = 0.0
    loss = model.loss_and_grad(*batch, **how)
    return loss, {name: gradient.copy() for name, gradient in model.grads.items()}


def patched(ops, **functions) -> SimpleNamespace:
    """The backend with some of its functions replaced."""
    return SimpleNamespace(**({name: getattr(ops, name) for name in ops.__all__} | functions))


def uneven_batch(config: ModelConfig) -> Batch:
    """Eight rows with different numbers of ignored targets.

    Row 0 has none, row 3 has only ignored ones, row 4 has all but one ignored.
    """
    batch = random_batch(config, B=8, T=6, seed=5, ignored=0.3)
    batch.targets[0] = 1
    batch.targets[3:5] = -1
    batch.targets[4, 2] = 0
    return batch


def check_split(backend: str, sizes: tuple[int, ...], change_model=lambda model: None, **fields) -> None:
    """Assert that micro-batches give the whole batch's loss and gradient.

    sizes: rows of each micro-batch. The order of the sums differs, so the results may
    differ by rounding.
    """
    config = small_config(dropout=0.3, **fields)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=6)
    change_model(model)
    batch = uneven_batch(config)
    whole_loss, whole = gradients_of(model, batch, step=9)

    n_targets = np.count_nonzero(batch.targets >= 0)
    model.grads.flat[:] = 0.0
    loss, first_row = 0.0, 0
    for size in sizes:
        tokens, targets = (array[first_row : first_row + size] for array in batch)
        loss += model.loss_and_grad(tokens, targets, n_targets=n_targets, step=9, first_row=first_row)
        first_row += size
    assert abs(loss - whole_loss) <= 1e-12 * whole_loss, f"the loss differs: {loss} and {whole_loss}"
    for name, gradient in whole.items():
        error = np.linalg.norm(model.grads[name] - gradient) / np.linalg.norm(gradient)
        assert error <= 1e-12, f"the gradient of {name} differs by {error:.1e}"


@st.composite
def shapes(draw):
    """The ModelConfig fields that decide shapes, then B and T.

    C is at least 4. The LayerNorm of two numbers is a step function, and finite
    differences cannot follow that.
    """
    n_kv_head = draw(st.integers(1, 2))
    n_head = n_kv_head * draw(st.integers(1, 2))
    head_width = draw(st.sampled_from([4, 6] if n_head == 1 else [2, 4]))
    T = draw(st.integers(1, 5))
    fields = {
        "n_layer": draw(st.integers(1, 2)),
        "n_head": n_head,
        "n_kv_head": n_kv_head,
        "n_embd": n_head * head_width,
        "block_size": T + draw(st.integers(0, 2)),
        "vocab_size": draw(st.integers(2, 9)),
    }
    return fields, draw(st.integers(1, 3)), T
