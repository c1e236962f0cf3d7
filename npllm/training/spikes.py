"""The spike detector: it finds loss spikes before the optimiser makes the update.

Broken text in a batch, or weights that start to diverge, give a loss or a gradient far
above those of the last steps. An update from them would damage the weights and, for
many steps more, Adam's moments. So each step is judged before its update is made.

A step is a spike if its loss, its gradient norm or the state is not finite, or if its
loss and norm together are too far above a window of accepted steps. Both distances are
measured in units of their noise:

    z_loss = (loss - mean) / noise
    z_norm = (log grad_norm - mean) / noise
    spike:   max(z_loss, 0) + max(z_norm, 0) > sigma,
             or grad_norm > 30 times its geometric mean, and z_norm > sigma / 2

The distances are added because at small batches each has heavy tails alone: at batch 1
one norm in a thousand is four times the mean, often with a loss below its mean, and
clipping bounds its effect. A fault moves both, or one of them far beyond its tail. The
logarithm of the norm is used because norms vary by factors. While the loss is above its
mean, a norm below its mean counts like one above it: saturated weights have a high loss
and no gradient.

The noise is the standard deviation, estimated from the differences between consecutive
steps (von Neumann, 1941: half their mean square is the variance). So a falling loss
does not count as noise. The noise has a lower bound, so that in a quiet run a mild
outlier is not a spike. A spike never enters the window, so it does not widen the limit
for the next.

The limit applies when the window has min_history steps and warm-up is over: while the
learning rate rises, norms jump sixfold in sound runs. While the batch grows, the window
holds the larger noise of smaller batches; while the loss falls, its mean is higher.
Both make the limit wider for a time, never too narrow.

The value of sigma comes from recorded steps, at batches of 1, 4 and 32 windows, on
three texts. Over 1.25 x 10^5 of them the sum stays below 13, but for one table of
accented letters. Of 3 x 10^6 steps drawn from the others none is above 14
(tests/reliability/test_recorded_norms.py). tools/plant_faults.py shows the sums that
planted faults reach.

(Chowdhery et al., "PaLM", 2022, section 5.1: go back about 100 steps, skip 200 to 500
batches; window as in OLMo-core.)
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from typing import ClassVar

import numpy as np

from npllm.errors import ConfigError

LEAST_NOISE_OF_LOSS = 0.05  # nats
LEAST_NOISE_OF_LOG_NORM = 0.25
FAR_ALONE = log(30.0)  # of a log gradient norm
ROLLBACK_PERIOD = 10_000  # updates; max_rollbacks counts the rollbacks within the last ones


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a step is a loss spike, and how a run recovers from it."""

    follows: ClassVar[dict[str, str]] = {"min_history": "window"}
    enabled: bool = True
    """go back to a checkpoint and skip the data when the loss spikes"""
    window: int = 128
    """accepted steps that the next one is compared with"""
    sigma: float = 14.0
    """units of noise that a spike's loss and log gradient norm exceed their means by"""
    min_history: int = 64
    """accepted steps, and the end of warm-up, before a finite loss can be a spike"""
    margin: int = 128
    """samples after the spiking batch that are skipped too"""
    max_rollbacks: int = 10
    """rollbacks within 10,000 updates; one more ends the run"""

    def __post_init__(self):
        if self.min_history < 2:
            raise ConfigError(f"spikes.min_history is {self.min_history}; set it to at least 2.")
        if self.window < self.min_history:
            raise ConfigError(
                f"spikes.window = {self.window} is below spikes.min_history = {self.min_history}, so it would never "
                "be full enough; raise spikes.window."
            )
        if not self.sigma > 0:
            raise ConfigError(f"spikes.sigma is {self.sigma}; set it above 0.")
        for name in ("margin", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"spikes.{name} is {getattr(self, name)}; set it to at least 0.")


class SpikeDetector:
    """The window of accepted steps. It is part of the loop's state: it is saved,
    restored and rolled back with it.

    warmup_steps: the loop sets it before every update, when it knows the run's length.
    levels: update number -> the losses and norms that replace the window there. They
    come from the ledger and are not part of the state.
    """

    def __init__(self, config: SpikeConfig, warmup_steps: int = 0):
        self.config = config
        self.warmup_steps = warmup_steps
        self.losses: deque[float] = deque(maxlen=config.window)
        self.log_norms: deque[float] = deque(maxlen=config.window)
        self.levels: Mapping[int, list[tuple[float, float]]] = {}

    def reason(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why a step is a spike (None = it is not). step: 0 for the first update. The
        step is not recorded."""
        if step in self.levels:
            self.restore([[loss, log_norm(grad_norm)] for loss, grad_norm in self.levels[step]])
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not isfinite(value):
                return f"the {name} is {value}"
        if step < self.warmup_steps or len(self.losses) < self.config.min_history:
            return None
        mean_loss, noise = _level(self.losses)
        z_loss = (loss - mean_loss) / max(noise, LEAST_NOISE_OF_LOSS)
        mean_norm, noise = _level(self.log_norms)
        z_norm = (log_norm(grad_norm) - mean_norm) / max(noise, LEAST_NOISE_OF_LOG_NORM)
        far = max(z_loss, 0.0) + max(abs(z_norm) if z_loss > 0 else z_norm, 0.0)
        norm_alone = log_norm(grad_norm) - mean_norm > FAR_ALONE and z_norm > self.config.sigma / 2
        if far <= self.config.sigma and not norm_alone:
            return None
        return (
            f"the loss is {loss:.4g} (mean {mean_loss:.4g}) and the gradient norm {grad_norm:.4g} (mean "
            f"{exp(mean_norm):.4g}), together {far:.3g} times their noise"
        )

    def accept(self, loss: float, grad_norm: float) -> None:
        """Add an accepted step to the window."""
        self.losses.append(loss)
        self.log_norms.append(log_norm(grad_norm))

    def history(self) -> list[list[float]]:
        """[loss, log of the gradient norm] of each step in the window, for JSON."""
        return [[loss, norm] for loss, norm in zip(self.losses, self.log_norms, strict=True)]

    def restore(self, history: list[list[float]]) -> None:
        """Set the window to a saved `history`. Of a longer one the end is kept."""
        self.losses.clear()
        self.log_norms.clear()
        for loss, log_norm in history:
            self.losses.append(loss)
            self.log_norms.append(log_norm)


def _level(window: deque[float]) -> tuple[float, float]:
    """Mean and noise of a window."""
    values = np.fromiter(window, np.float64, len(window))
    steps = np.diff(values)
    return float(values.sum()) / len(values), sqrt(float(steps @ steps) / len(steps) / 2.0)


def log_norm(grad_norm: float) -> float:
    """The logarithm of a gradient norm, finite for a norm of zero too."""
    return log(max(grad_norm, 1e-300))
