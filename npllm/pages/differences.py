"""Gradients against central differences of the loss, measured on a model as it is.

The differences are those of `npllm/reference/differences.py`, in float64, with four
forwards each. The step is a 256th of the tensor's root-mean-square: both errors are
then small, for weights of any size. `tests/gradient_check.py` proves the gradients with
tighter bounds; here a few entries of every tensor show that they are right for this
model and this text.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from npllm.model import GPT
from npllm.model.inspection import Inspection, float64_copy
from npllm.reference.differences import derivative_at_zero, relative_errors

ENTRIES = 4  # of each tensor
STEP = 2.0**-8  # of the tensor's root-mean-square
BUDGET = 4e11  # floating-point operations of all forwards; a larger model gets fewer entries
LEAST_STEP = 2.0**-12  # for a tensor of zeros


class _Nudged:
    """A table of operations that changes one entry of the result of one forward."""

    def __init__(self, ops: Any):
        self.__all__ = ops.__all__
        self.start(None)
        for name in ops.__all__:
            operation = getattr(ops, name)
            is_forward = name.endswith("_forward")
            setattr(self, name, self._counted(operation) if is_forward else operation)

    def start(self, number: int | None, entry: int = 0, change: float = 0.0) -> None:
        """Start a pass. number: of the call whose result changes; None = of no call."""
        self._made, self._number, self._entry, self._change = 0, number, entry, change

    def _counted(self, operation):
        def called(*arguments, **options):
            returned = operation(*arguments, **options)
            if self._made == self._number:
                array = returned_array(returned if type(returned) is tuple else (returned,))
                array.flat[self._entry] += self._change
            self._made += 1
            return returned

        return called


def returned_array(results: tuple) -> np.ndarray:
    """Return the array that an operation passes on: of a sum and its norm the norm."""
    return results[1] if len(results) > 2 else results[0]


def largest_errors(model: GPT, inside: Inspection) -> tuple[dict[str, float], int]:
    """Return the largest relative error of the gradient of each tensor, by name.

    Tensors are the outputs of the operations and the parameters. An error is relative
    to the larger of the two values, and never to less than the root-mean-square of the
    gradient. Returns also how many entries of each tensor were measured: the one with
    the largest gradient and random ones.
    """
    twin = float64_copy(model)
    twin.ops = nudged = _Nudged(twin.ops)
    entries = _affordable(model, inside)
    loss = _loss_function(twin, inside)
    errors = {}
    for number, (name, operation) in enumerate(inside.operations.items()):
        if name == "loss":
            continue
        output = returned_array(operation.forward.results)

        def changed(entry: int, change: float, number: int = number) -> float:
            nudged.start(number, entry, change)
            return loss()

        errors[name] = _largest_error(changed, output, inside.gradients[name], entries)
    nudged.start(None)
    for name, array in twin.params.items():
        flat = array.reshape(-1)

        def changed(entry: int, change: float, flat: np.ndarray = flat) -> float:
            before = flat[entry]
            flat[entry] += change
            try:
                return loss()
            finally:
                flat[entry] = before

        errors[name] = _largest_error(changed, array, inside.gradients[name], entries)
    # The stream between the branches is x + branch, so its derivative is the branch's.
    mids = [name for name in inside.outputs if name.endswith(".mid")]
    errors |= {name: errors[name.removesuffix("mid") + "attention.out"] for name in mids}
    return errors, entries


def _affordable(model: GPT, inside: Inspection) -> int:
    """Return how many entries of each tensor are measured."""
    n_tensors = len(inside.operations) + len(inside.gradients) - len(inside.outputs)
    forward = inside.tokens.size * model.config.flops_per_token(inside.tokens.shape[1]) / 3
    return int(np.clip(BUDGET / (4 * n_tensors * forward), 1, ENTRIES))


def _loss_function(twin: GPT, inside: Inspection) -> Callable[[], float]:
    targets = inside.targets.reshape(-1)
    n_targets = np.count_nonzero(targets >= 0)

    def loss() -> float:
        hidden = twin.trace(inside.tokens).hidden
        nll, _ = twin.ops.lm_head_loss_forward(hidden, twin.views.head, targets)
        return float(nll.sum()) / n_targets

    return loss


def _largest_error(changed: Callable[[int, float], float], array, gradient, entries: int) -> float:
    size = float(np.sqrt(np.mean(np.square(array))))
    step = 2.0 ** np.round(np.log2(STEP * size)) if size > 0 else LEAST_STEP
    flat = gradient.reshape(-1)
    chosen = _chosen(flat, entries)
    measured = np.array([derivative_at_zero(partial(changed, entry), step) for entry in chosen])
    return float(relative_errors(flat[chosen], measured, np.sqrt(np.mean(np.square(flat)))).max())


def _chosen(gradient: np.ndarray, entries: int) -> list[int]:
    """Return the entry with the largest gradient and others, most of which have one.

    Of a table of embeddings only the rows that the text uses have a gradient.
    """
    rng = np.random.default_rng(0)
    used = np.flatnonzero(gradient) if gradient.any() else np.arange(len(gradient))
    others = [int(rng.integers(len(gradient))), *rng.choice(used, entries).tolist()]
    return [int(np.argmax(np.abs(gradient))), *others][:entries]
