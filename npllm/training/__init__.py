"""Training: configuration, data preparation, the loop, checkpoints, evaluation, results."""
