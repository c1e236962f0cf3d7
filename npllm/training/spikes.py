"""Loss spikes: seeing them before the optimiser does.

A batch of broken text, or weights that have begun to run away, show as a loss or a gradient far outside of what the
last steps had. An update made from it would poison the weights and, for many steps more, Adam's moments; so each step
is judged before the optimiser moves anything.

A step is a spike when its loss, its gradient norm or the state is not finite, or when

    loss            > mean + max(sigma * noise, a fifth of the mean)
    log grad_norm   > mean + max(sigma * noise, log 4)

over a window of accepted steps. The noise is the standard deviation, but estimated from the differences between one
step and the next (von Neumann, 1941: half their mean square is the variance), so that a loss that is still falling does
not count as noisy. Gradient norms are judged by their logarithm, because they vary by factors. The second
terms keep a steady run from taking a mild outlier for a spike, as heavy tails bring in every long run: what they let
pass, clipping bounds. A spike never enters the window, so it cannot widen the limits for the next one.

The limits wait for a window of min_history steps and for the end of warm-up: while the learning rate climbs, norms jump
sixfold in sound runs. While the batch grows the window holds the larger noise of smaller batches, and while the loss
falls its mean lies higher; both make the limits wider for a while and never too narrow.

(Chowdhery et al., "PaLM", 2022, section 5.1: go back about 100 steps, skip 200 to 500 batches; sigma and window as in
OLMo-core.)
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt

import numpy as np

from npllm.errors import ConfigError

LEAST_RISE_OF_LOSS = 0.2  # of its mean
LEAST_RISE_OF_LOG_NORM = log(4.0)


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a step counts as a loss spike, and what is done about it."""

    enabled: bool = True
    """go back to a checkpoint and skip the data when the loss spikes"""
    window: int = 128
    """accepted steps that the next one is compared with"""
    sigma: float = 6.0
    """standard deviations of their noise above their mean that make a spike"""
    min_history: int = 64
    """accepted steps before anything but NaN and infinity counts as a spike (and warm-up must be over)"""
    margin: int = 128
    """samples behind the spiking batch that are skipped too"""
    max_rollbacks: int = 10
    """rollbacks in a run before it gives up"""

    def __post_init__(self):
        if self.min_history < 2:
            raise ConfigError(f"spikes.min_history is {self.min_history}, but must be at least 2.")
        if self.window < self.min_history:
            raise ConfigError(
                f"spikes.window = {self.window} is below spikes.min_history = {self.min_history}, so it would never "
                "be full enough; raise spikes.window."
            )
        if not self.sigma > 0:
            raise ConfigError(f"spikes.sigma is {self.sigma}, but must be above 0.")
        for name in ("margin", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"spikes.{name} is {getattr(self, name)}, but must not be negative.")


@dataclass(frozen=True)
class Spike:
    """An update that was not made. samples: the absolute ids of its batch, first and one past the last."""

    step: int  # the update that it would have been
    loss: float
    grad_norm: float
    tokens: int  # trained on before it
    samples: tuple[int, int]
    reason: str


class SpikeDetector:
    """The window of accepted steps. It is part of a loop's state: saved, restored and rolled back with it."""

    def __init__(self, config: SpikeConfig, warmup_steps: int):
        self.config = config
        self.warmup_steps = warmup_steps
        self.losses: deque[float] = deque(maxlen=config.window)
        self.log_norms: deque[float] = deque(maxlen=config.window)

    def reason(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why update 0, 1, ... is a spike, or None. Judges and does not record."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not isfinite(value):
                return f"the {name} is {value}"
        if step < self.warmup_steps or len(self.losses) < self.config.min_history:
            return None
        mean, limit = self._limit(self.losses, lambda mean: LEAST_RISE_OF_LOSS * mean)
        if loss > limit:
            return f"the loss is {loss:.4g}, above {limit:.4g} (mean {mean:.4g})"
        mean, limit = self._limit(self.log_norms, lambda _: LEAST_RISE_OF_LOG_NORM)
        if _log(grad_norm) > limit:
            return f"the gradient norm is {grad_norm:.4g}, above {exp(limit):.4g} (mean {exp(mean):.4g})"
        return None

    def accept(self, loss: float, grad_norm: float) -> None:
        """Take a step that was made into the window."""
        self.losses.append(loss)
        self.log_norms.append(_log(grad_norm))

    def _limit(self, window: deque[float], least_rise: Callable[[float], float]) -> tuple[float, float]:
        values = np.fromiter(window, np.float64, len(window))
        mean = float(values.sum()) / len(values)
        steps = np.diff(values)
        noise = sqrt(float(steps @ steps) / len(steps) / 2.0)
        return mean, mean + max(self.config.sigma * noise, least_rise(mean))

    def history(self) -> list[list[float]]:
        """[loss, log of the gradient norm] of each step in the window, for JSON."""
        return [[loss, norm] for loss, norm in zip(self.losses, self.log_norms, strict=True)]

    def restore(self, history: list[list[float]]) -> None:
        """Become the detector that `history` was taken from; of a longer history, the end."""
        self.losses.clear()
        self.log_norms.clear()
        for loss, log_norm in history:
            self.losses.append(loss)
            self.log_norms.append(log_norm)


def _log(grad_norm: float) -> float:
    return log(max(grad_norm, 1e-300))  # a gradient of zero is no spike
