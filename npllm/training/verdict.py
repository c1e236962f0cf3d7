"""How a pretraining went, in sentences: what its last figures mean and what to
change."""

from collections.abc import Iterator, Mapping
from math import isfinite, nan

from npllm.data.shards import TokenShard
from npllm.model import GPT
from npllm.output import shell_word
from npllm.runs.checkpoint_store import best_of, read_manifest
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder
from npllm.training.evaluation import Evaluation, pair_table_loss

OVERFIT = 0.05  # nats above the lowest validation loss
RARE = 10  # occurrences of a token of the vocabulary in the training text, on average
# By how much the training loss is below the validation loss, as a share. Held-out text
# is always some percent harder: its names and subjects are others.
BY_HEART = 0.2  # much of the training text is learnt by heart
ALIKE = 0.05  # nothing is
LEAST_TEXT = 4096  # bytes; of a shorter text, most of a compressor's output is overhead
LONGER = "train longer (train.steps or train.minutes)"


def verdict(
    run: RunFolder,
    model: GPT,
    train: TokenShard,
    val: TokenShard,
    result: Evaluation,
    train_loss: float,
    compressors: Mapping[str, float],
) -> Iterator[str]:
    """Yield a sentence about how well the model fits its text, and one for each thing
    that is wrong with the text.

    result: of the whole validation text. train_loss: of as much of the training text.
    compressors: their bits per byte of the validation text.
    """
    table = pair_table_loss(train.tokens, val.tokens, model.config.vocab_size)
    if sentence := overfitting(run):
        yield sentence
    elif train_loss < (1.0 - BY_HEART) * result.loss:
        yield (
            f"The model overfits: its training loss is {1.0 - train_loss / result.loss:.0%} below its validation loss; "
            "give more text, or take a smaller model or fewer steps."
        )
    elif result.loss > table:  # too high a learning rate may show in no other way
        yield (
            f"A table of which token follows which predicts this text better, in {table:.4f} nats per token: lower "
            f"optim.lr, or {LONGER}."
        )
    elif val.n_bytes >= LEAST_TEXT and result.bits_per_byte > compressors["gzip"]:
        yield f"gzip, which learns nothing, still predicts this text better: {LONGER}."
    elif train_loss > (1.0 - ALIKE) * result.loss:
        yield (
            f"The model underfits: it predicts held-out text nearly as well as its training text; {LONGER}, or take a "
            "larger model."
        )
    else:
        yield (
            f"The model fits its text: its training loss is {1.0 - train_loss / result.loss:.0%} below its validation "
            "loss, which is usual; more text and a longer training should both help."
        )
    if val.n_bytes < LEAST_TEXT:
        yield (
            f"{val.n_bytes:,} bytes of held-out text are too few to compare with compressors; give more text, or raise "
            "data.val_fraction."
        )
    occurrences = len(train.tokens) / model.config.vocab_size
    if occurrences < RARE:
        yield (
            f"A token of the vocabulary occurs {occurrences:.1f} times on average in the training text, which is too "
            "rarely to be learnt; lower data.vocab_size, or give more text."
        )


def overfitting(run: RunFolder) -> str | None:
    """A sentence if the validation loss has risen again; None if it has not."""
    records = read_metrics(run.metrics)
    losses = {record["step"]: record["val_loss"] for record in records if isfinite(record.get("val_loss", nan))}
    if not losses:
        return None
    best, last = min(losses, key=losses.get), losses[max(losses)]
    if last <= losses[best] + OVERFIT:
        return None
    sentence = (
        f"The model has learnt its text by heart: the validation loss was {losses[best]:.2f} at step {best} and is "
        f"{last:.2f} now; train for fewer steps, or give more text."
    )
    kept = best_of(read_manifest(run.checkpoints)[0])
    if kept is None or kept.step == 0 or kept.val_loss > last - OVERFIT:
        return sentence
    return (
        f"{sentence} The weights of step {kept.step} were kept: npllm generate {shell_word(run.path)} --checkpoint best"
    )
