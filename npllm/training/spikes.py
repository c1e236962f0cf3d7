"""Loss spikes: seeing them before the optimiser does.

A batch of broken text, or weights that have begun to run away, show as a loss or a gradient far outside of what the
last steps had. An update made from it would poison the weights and, for many steps more, Adam's moments; so each step
is judged before the optimiser moves anything.

A step is a spike when its loss, its gradient norm or the state is not finite, or when loss and norm together lie too
far above a window of accepted steps, each counted in units of its own noise:

    z_loss = (loss - mean) / noise          z_norm = (log grad_norm - mean) / noise
    max(z_loss, 0) + max(z_norm, 0) > sigma,        or the norm alone is 30 times the mean, and z_norm > sigma / 2

Together, because small batches have heavy tails in each alone: at batch 1 one norm in a thousand is four times the
mean, often with a loss below its mean, and clipping bounds what it does. A fault moves both, or one of them beyond any
tail. Norms are judged by their logarithm, because they vary by factors. While the loss is up, a norm that falls counts
like one that rises: weights that have saturated have a high loss and no gradient.

The noise is the standard deviation, but estimated from the differences between one step and the next (von Neumann,
1941: half their mean square is the variance), so that a loss that is still falling does not count as noisy; and never
below a floor, so that a quiet run does not take a mild outlier for a spike. A spike never enters the
window, so it cannot widen the limit for the next one.

The limit waits for a window of min_history steps and for the end of warm-up: while the learning rate climbs, norms jump
sixfold in sound runs. While the batch grows the window holds the larger noise of smaller batches, and while the loss
falls its mean lies higher; both make the limit wider for a while and never too narrow.

Where sigma comes from: over 1.25 x 10^5 recorded steps at batches of 1, 4 and 32 windows, on
three texts, the sum stays below 13, but for one table of accented letters. Of 3 x 10^6 steps
drawn from them none is above 14 (tests/reliability/test_recorded_norms.py). What planted
faults reach: tools/plant_faults.py.

(Chowdhery et al., "PaLM", 2022, section 5.1: go back about 100 steps, skip 200 to 500 batches; window as in OLMo-core.)
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt

import numpy as np

from npllm.errors import ConfigError

LEAST_NOISE_OF_LOSS = 0.05  # nats
LEAST_NOISE_OF_LOG_NORM = 0.25
FAR_ALONE = log(30.0)  # of a log gradient norm
ROLLBACK_PERIOD = 10_000  # updates over which rollbacks are counted: a long run may have more of them than a short one


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a step counts as a loss spike, and what is done about it."""

    enabled: bool = True
    """go back to a checkpoint and skip the data when the loss spikes"""
    window: int = 128
    """accepted steps that the next one is compared with"""
    sigma: float = 14.0
    """units of their noise that loss and log gradient norm together must be above their means to make a spike"""
    min_history: int = 64
    """accepted steps before anything but NaN and infinity counts as a spike (and warm-up must be over)"""
    margin: int = 128
    """samples behind the spiking batch that are skipped too"""
    max_rollbacks: int = 10
    """rollbacks within 10,000 updates before it gives up"""

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


class SpikeDetector:
    """The window of accepted steps. It is part of a loop's state: saved, restored and rolled back with it.

    levels: update number -> the window to begin anew with there. It comes from the ledger and is no part of the state.
    """

    def __init__(self, config: SpikeConfig, warmup_steps: int):
        self.config = config
        self.warmup_steps = warmup_steps
        self.losses: deque[float] = deque(maxlen=config.window)
        self.log_norms: deque[float] = deque(maxlen=config.window)
        self.levels: Mapping[int, list[tuple[float, float]]] = {}

    def reason(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why update 0, 1, ... is a spike, or None. Judges and does not record."""
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
        """Take a step that was made into the window."""
        self.losses.append(loss)
        self.log_norms.append(log_norm(grad_norm))

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


def _level(window: deque[float]) -> tuple[float, float]:
    """Mean and noise."""
    values = np.fromiter(window, np.float64, len(window))
    steps = np.diff(values)
    return float(values.sum()) / len(values), sqrt(float(steps @ steps) / len(steps) / 2.0)


def log_norm(grad_norm: float) -> float:
    """What the window holds of a gradient norm."""
    return log(max(grad_norm, 1e-300))  # a gradient of zero is no error
