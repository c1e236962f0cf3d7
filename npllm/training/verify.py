"""Checking every file of a run against its hash, or against what it must be."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from npllm.bounded_read import read_bounded
from npllm.data.checksums import NAME, check_list, checked
from npllm.data.shards import read_shard
from npllm.errors import DataError, NpllmError
from npllm.strict_json import parse_json
from npllm.training.checkpoint import checkpoint_files, load_checkpoint
from npllm.training.checkpoint_store import MANIFEST, CheckpointStore
from npllm.training.config import load_config, stage_of
from npllm.training.ledger import Ledger
from npllm.training.metrics import read_metrics
from npllm.training.run_folder import RunFolder

LARGEST_SUMMARY = 1 << 20  # bytes

Check = tuple[Path, Callable[[Path], object]]  # a file, and what raises an NpllmError where it is damaged


def verify_run(run: RunFolder) -> Iterator[tuple[Path, str | None]]:
    """Each file that has something to be checked by, and what is wrong with it (None = nothing)."""
    store = CheckpointStore(run.checkpoints, keep=1, every=1)
    checks: list[Check] = [
        *_inputs(run),
        (run.tokenizer, lambda _: run.load_tokenizer()),
        (run.checkpoints / MANIFEST, lambda path: _manifest(store, path)),
        *((path, lambda path: _checkpoint(store, path)) for path in checkpoint_files(run.checkpoints)),
        (run.metrics, read_metrics),
        (run.ledger, Ledger),
        (run.summary, lambda path: _summary(run, path)),
    ]
    for path, check in checks:
        if not path.exists() and path in (run.metrics, run.ledger, run.summary):
            continue  # a run that was stopped, or in which nothing went wrong
        try:
            check(path)
        except NpllmError as error:
            yield path, str(error)
        else:
            yield path, None


def _inputs(run: RunFolder) -> list[Check]:
    """What the run began with. A later stage brings copies of its models and records, and the fields of its config are
    known to that stage only: of the config it is checked that it can be read."""
    try:
        stage = stage_of(run.config)
    except NpllmError:
        return [(run.config, stage_of)]
    if stage == "pretrain":
        shards = (run.train_shard, run.val_shard)
        return [(run.config, load_config), *((path, lambda path: _shard(run, path)) for path in shards)]
    models, records = (sorted(run.path.glob(names)) or [run.path / names] for names in ("models/*.h5", "data/*.jsonl"))
    copies = [(path, load_checkpoint) for path in models] + [(path, checked) for path in records]
    return [(run.config, stage_of), *copies, (run.path / "data" / NAME, check_list)]


def _shard(run: RunFolder, path: Path) -> None:
    if read_shard(path).tokenizer_sha256 != run.load_tokenizer().sha256():
        raise DataError(f"{path} was not made with {run.tokenizer}; put back the file that belongs to the run.")


def _manifest(store: CheckpointStore, path: Path) -> None:
    if path in store.refused:
        raise DataError(store.refused[path])
    for step in store.entries:
        if not store.path(step).exists():
            raise DataError(f"{path} lists {store.path(step).name}, which is not there; npllm resume uses another one.")


def _checkpoint(store: CheckpointStore, path: Path) -> None:
    if path in store.refused:
        raise DataError(store.refused[path])
    store.load(next(step for step in store.entries if store.path(step) == path))


def _summary(run: RunFolder, path: Path) -> None:
    """The weights that the summary speaks of are those of the newest checkpoint."""
    try:
        expected = parse_json(read_bounded(path, LARGEST_SUMMARY))["params_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no summary ({error}); npllm resume writes it again.") from error
    params = load_checkpoint(run.newest_checkpoint()).arrays["params"]
    if hashlib.sha256(params).hexdigest() != expected:
        raise DataError(f"{path} speaks of other weights than {run.newest_checkpoint().name}; npllm resume renews it.")
