"""One training step on one line of text, and every number that the microscope shows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.model.inspection import Inspection, float64_copy, inspect
from npllm.pages.backward_lens import LayerReading, backward_lens
from npllm.pages.differences import largest_errors
from npllm.pages.kernel_times import StepProfile, profile_step
from npllm.pages.subject import Subject
from npllm.reference.lm_head_loss import IGNORED


class Step(NamedTuple):
    """One update by the optimiser of the run, from the gradient of this line alone.

    after: the loss of each token with the new weights, (T,). grad_norm: before
    clipping. shares: of each parameter the norm of its update, divided by its own norm.
    """

    after: np.ndarray
    grad_norm: float
    shares: dict[str, float]


class Microscope(NamedTuple):
    """All numbers of the page.

    updates: that the model had made. weights: before the step, float64, by name; LoRA's
    factors are merged in. errors: the largest relative error of each tensor's gradient,
    by name, over `entries` of its entries. sent_back: (T-1, L+1, T), see there.
    """

    subject: Subject
    updates: int
    weights: Mapping[str, np.ndarray]
    inside: Inspection
    errors: dict[str, float]
    entries: int
    sent_back: np.ndarray
    lens: list[LayerReading]
    profile: StepProfile
    step: Step


def look_at(subject: Subject, report: Callable[[str], None] = lambda line: None) -> Microscope:
    """Compute all numbers of the page. The subject's model has then made a step.

    report: called with a line about what is done.
    """
    model, tokens = subject.model, subject.tokens
    inside = inspect(model, tokens)
    errors, entries = largest_errors(model, inside, report)
    report("what the loss of each token sends back")
    norms = sent_back(model, inside)
    report("the time of each kernel")
    profile = profile_step(model, subject.rows, model.config.block_size)
    report("one update")
    return Microscope(
        subject,
        subject.optimizer.updates,
        float64_copy(model).weights,
        inside,
        errors,
        entries,
        norms,
        backward_lens(model, inside),
        profile,
        make_step(subject, inside),
    )


def sent_back(model: GPT, inside: Inspection) -> np.ndarray:
    """Return what the loss of each token sends back, (T-1, L+1, T).

    Entry (t, l, p) is the norm of the gradient of the loss of token t+1, which is
    predicted at position t, by the residual stream after l blocks at position p. It is
    0 for p > t: the future does not act on the past.
    """
    norms = []
    for t in range(inside.tokens.shape[1] - 1):
        targets = np.full_like(inside.targets, IGNORED)
        targets[0, t] = inside.targets[0, t]
        gradients = inspect(model, inside.tokens, targets).stream_gradients  # (L+1, 1, T, C)
        norms.append(np.linalg.norm(gradients[:, 0], axis=-1))
    return np.stack(norms)


def make_step(subject: Subject, inside: Inspection) -> Step:
    """Update the model by one step on the line, and evaluate the line again."""
    model, optimizer = subject.model, subject.optimizer
    before = {name: array.astype(np.float64) for name, array in model.params.items()}
    model.loss_and_grad(inside.tokens, inside.targets, step=optimizer.updates)
    grad_norm = optimizer.step(grad_clip=subject.grad_clip, lr=subject.lr)
    after = inspect(model, inside.tokens, inside.targets, backward=False).losses[0]
    shares = {name: _share(model.params[name] - old, old) for name, old in before.items()}
    return Step(after, grad_norm, shares)


def _share(change: np.ndarray, old: np.ndarray) -> float:
    """The norm of a change as share of a norm; infinite where something was zero."""
    size: Any = np.linalg.norm(old)
    return float(np.linalg.norm(change) / size) if size else (np.inf if change.any() else 0.0)
