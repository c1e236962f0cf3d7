"""A run as it lies on disk: its folder, config, checkpoints, ledger, metrics, records and their hashes."""
