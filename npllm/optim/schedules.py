"""Learning rate and batch size as pure functions of the update's number.

A run that is resumed at any step therefore goes on as if it had never stopped.
"""

from math import cos, pi, sqrt

from npllm.optim.config import BatchConfig, OptimConfig

LONGEST_WARMUP = 0.1  # of a run


def warmup_updates(n_updates: int | None, config: OptimConfig) -> int:
    """Return the number of warm-up updates: warmup_steps, but at most a tenth of all.

    Otherwise a run of few updates would end before it reached its learning rate.
    n_updates: None = the length is not known yet, and nothing is cut.
    """
    if n_updates is None:
        return config.warmup_steps
    return min(config.warmup_steps, int(LONGEST_WARMUP * n_updates))


def learning_rate(update: int, n_updates: int | None, config: OptimConfig) -> float:
    """Return the learning rate of an update, 0 ... n_updates - 1.

    n_updates: None = the length is not known yet, and the decay has not begun.

    The warm-up rises in equal steps; the first is not zero, and the last is the peak.
    The decay starts at the peak, and its last update has exactly min_lr; inverse_sqrt
    is lr sqrt(warmup / (update + 1)), but at least min_lr. So at least one update has
    the rate lr, however short the run is. (Cosine: Loshchilov & Hutter, "SGDR", 2016.
    Inverse square root: Vaswani et al., 2017. wsd: Hägele et al., "Scaling laws and
    compute-optimal training beyond fixed training durations", 2024.)
    """
    warmup = warmup_updates(n_updates, config)
    if update < warmup:
        return config.lr * ((update + 1) / warmup)
    if config.decay == "constant" or n_updates is None:
        return config.lr
    if config.decay == "inverse_sqrt":
        return max(config.min_lr, config.lr * sqrt(max(1, warmup) / (update + 1)))
    first, last = warmup, n_updates - 1
    if config.decay == "wsd":
        first = max(first, last - max(1, round(config.cooldown * n_updates)))
    progress = min(1.0, max(0.0, (update - first) / max(1, last - first)))
    share = 0.5 * (1.0 + cos(pi * progress)) if config.decay == "cosine" else 1.0 - progress
    # Rounding can make the sum a little larger than the larger of the two rates.
    return min(config.lr, share * config.lr + (1.0 - share) * config.min_lr)


def batch_size(update: int, config: BatchConfig) -> int:
    """Return the number of sequences in an update, 0, 1, ...

    It rises linearly from ramp_start to size over ramp_steps updates. During the ramp
    it is rounded down to whole micro-batches, but not below ramp_start, so that no
    micro-batch is half empty. Early gradients have nearly the same direction and need
    few samples; late gradients are noisy and need many. (Brown et al., "Language models
    are few-shot learners" (GPT-3), 2020; McCandlish et al., 2018.)
    """
    if config.ramp_start is None or update >= config.ramp_steps:
        return config.size
    wanted = config.ramp_start + (config.size - config.ramp_start) * update // config.ramp_steps
    return max(config.ramp_start, wanted // config.micro_size * config.micro_size)
