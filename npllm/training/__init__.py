"""Training: config, data preparation, stages, loop, recovery, evaluation, results."""
