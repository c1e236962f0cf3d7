"""Gradients against central differences of the loss, measured on a model as it is.

The differences are those of `npllm/reference/differences.py`, in float64, with four
forwards each. What stands before a changed tensor is the same in every forward, so its
results are those of the first one. The step is a 256th of the tensor's
root-mean-square: both errors are then small, for weights of any size.
`tests/gradient_check.py` proves the gradients with tighter bounds; here a few entries
of every tensor show that they are right for this model and this text.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from npllm.model import GPT
from npllm.model.inspection import Inspection, float64_copy
from npllm.model.recording import Call, Tape
from npllm.pages.kernel_times import arrays_in
from npllm.reference.differences import derivative_at_zero, relative_errors

ENTRIES = 4  # of each tensor
STEP = 2.0**-8  # of the tensor's root-mean-square
BUDGET = 4e11  # floating-point operations of all forwards, were they whole; a larger model gets fewer entries
LEAST_STEP = 2.0**-12  # for a tensor of zeros


class _Nudged:
    """A table of operations for many forwards, of which each starts at some operation.

    Those before it return what they returned in the recorded forward, `calls`. The
    result of the first one can be changed in one entry.
    """

    def __init__(self, ops: Any, calls: Sequence[Call]):
        self.__all__ = ops.__all__
        self._returned = [call.results if len(call.results) > 1 else call.results[0] for call in calls]
        self.start(0)
        for name in ops.__all__:
            operation = getattr(ops, name)
            is_forward = name.endswith("_forward")
            setattr(self, name, self._counted(operation) if is_forward else operation)

    def start(self, first: int, entry: int = 0, change: float = 0.0) -> None:
        """Start a forward. first: number of the operation that it starts at."""
        self._made, self._first, self._entry, self._change = 0, first, entry, change

    def _counted(self, operation):
        def called(*arguments, **options):
            number, self._made = self._made, self._made + 1
            if number < self._first:
                return self._returned[number]
            returned = operation(*arguments, **options)
            if number == self._first and self._change:
                array = returned_array(returned if type(returned) is tuple else (returned,))
                array.flat[self._entry] += self._change
            return returned

        return called


def returned_array(results: tuple) -> np.ndarray:
    """Return the array that an operation passes on: of a sum and its norm the norm."""
    return results[1] if len(results) > 2 else results[0]


def largest_errors(
    model: GPT, inside: Inspection, report: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, float], int]:
    """Return the largest relative error of the gradient of each tensor, by name.

    Tensors are the outputs of the operations and the parameters. An error is relative
    to the larger of the two values, and never to less than the root-mean-square of the
    gradient. Returns also how many entries of each tensor were measured: the one with
    the largest gradient and random ones. report: called with a line about each tensor.
    """
    twin = float64_copy(model)
    calls = _forward_calls(twin, inside.tokens)
    twin.ops = nudged = _Nudged(twin.ops, calls)
    entries = _affordable(model, inside)
    loss = _loss_function(twin, inside)
    names = [name for name in inside.operations if name != "loss"]
    changes: dict[str, tuple[Callable[[int, float], float], np.ndarray]] = {}
    for number, name in enumerate(names):
        output = returned_array(inside.operations[name].forward.results)
        changes[name] = partial(_with_output, nudged, loss, number), output
    for name, array in twin.params.items():
        changes[name] = partial(_with_parameter, nudged, loss, _first_reader(calls, array), array.reshape(-1)), array
    errors = {}
    for name, (changed, array) in changes.items():
        report(f"gradients against differences: tensor {len(errors) + 1} of {len(changes)}")
        errors[name] = _largest_error(changed, array, inside.gradients[name], entries)
    # The stream between the branches is x + branch, so its derivative is the branch's.
    mids = [name for name in inside.outputs if name.endswith(".mid")]
    errors |= {name: errors[name.removesuffix("mid") + "attention.out"] for name in mids}
    return errors, entries


def _with_output(nudged: _Nudged, loss: Callable[[], float], number: int, entry: int, change: float) -> float:
    """Return the loss with a changed entry of the result of an operation."""
    nudged.start(number, entry, change)
    return loss()


def _with_parameter(
    nudged: _Nudged, loss: Callable[[], float], first: int, flat: np.ndarray, entry: int, change: float
) -> float:
    """Return the loss with a changed entry of a parameter. first: that reads it."""
    nudged.start(first)
    before = flat[entry]
    flat[entry] += change
    try:
        return loss()
    finally:
        flat[entry] = before


def _forward_calls(twin: GPT, tokens: np.ndarray) -> list[Call]:
    """Return the calls of a forward up to the head."""
    ops = twin.ops
    twin.ops = tape = Tape(ops)
    twin.trace(tokens)
    twin.ops = ops
    return tape.calls


def _first_reader(calls: Sequence[Call], parameter: np.ndarray) -> int:
    """Return the number of the first call that reads a parameter; the head is last."""
    reads = (any(np.may_share_memory(parameter, each) for each in arrays_in(call.arguments)) for call in calls)
    return next((number for number, each in enumerate(reads) if each), len(calls))


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
