"""A run on disk: folder, config, checkpoints, ledger, metrics, records, hashes."""
