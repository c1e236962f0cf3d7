"""A finished run beside its predecessor on the same text."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from npllm.data.shards import Extent, TokenShard, read_extent
from npllm.errors import NpllmError
from npllm.runs.config_file import stage_of
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import read_summary

FIGURE = "val_bits_per_byte"


def compare_with_previous(run: RunFolder, val: TokenShard, bits_per_byte: float) -> str | None:
    """A sentence that compares a pretraining run with the newest finished one that was
    made before it, in the same folder, and has the same validation text. None if there
    is none.

    val, bits_per_byte: the run's validation text, and the result on it. A run that
    cannot be read is passed over: it is none of this run's business.
    """
    for other in _made_before(run):
        try:
            if stage_of(other.config) != "pretrain" or not _same_text(read_extent(other.val_shard), val):
                continue
            before = read_summary(other, {FIGURE: float})[FIGURE]
        except (NpllmError, OSError):
            continue
        less = round(round(before, 3) - round(bits_per_byte, 3), 3)  # the difference of the figures that are shown
        now = f"{abs(less):.3f} {'less' if less > 0 else 'more'}" if less else "as many"
        return f"{other.path}, the run before this one, had {before:.3f} bits per byte; this one has {now}."
    return None


def _same_text(one: Extent, other: TokenShard) -> bool:
    """Whether both come from the same source, split alike. The tokens may differ."""
    return (one.source_sha256, one.n_bytes) == (other.source_sha256, other.n_bytes)


def _made_before(run: RunFolder) -> Iterator[RunFolder]:
    """The runs beside a run that were made before it, the newest first. The validation
    text is written once, when a run is made. A draft, whose name is hidden, is no
    run."""
    parent = run.path.parent if run.path.name else run.path.resolve().parent
    made: list[tuple[int, Path]] = []
    with suppress(OSError):
        age = run.val_shard.stat().st_mtime_ns
        for path in parent.iterdir():
            with suppress(OSError):  # no run, or one that may not be read
                made.append((RunFolder(path).val_shard.stat().st_mtime_ns, path))
        made = [(time, path) for time, path in made if time < age and not path.name.startswith(".")]
    yield from (RunFolder(path) for _, path in sorted(made, reverse=True))
