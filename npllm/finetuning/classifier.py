r"""A language model as a classifier: a second head reads a text's final hidden states.

The loss of a batch of B texts is

$$
L = -1/B \sum_b \log softmax(z_b)[class_b] + aux_lm L_{lm}
$$

$z_b$ are the head's outputs for text b. $L_{lm}$ is the mean negative log-likelihood of
the tokens of all texts. This second term keeps the network a language model while it
learns from few labels. (Radford et al., "Improving language understanding by generative
pre-training" (GPT-1), 2018, equation 5, with $aux_lm = 0.5$.)

GPT-1's head reads the state of the last token, the only one that depends on the whole
text. In a small model that state says little besides what the next token is, and a few
labels do not change this. The mean of the states of all tokens says what the text is
about.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from npllm.data.records import Labelled
from npllm.data.sampler import RowSampler
from npllm.errors import DataError
from npllm.model import GPT
from npllm.output import tracked
from npllm.reference.lm_head_loss import IGNORED
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig
from npllm.training.evaluation import rows_at_once
from npllm.training.loop import BatchResult, accumulate

Pool = Literal["last", "mean"]  # which positions of a text the head reads
WIDTH_STEP = 8  # rows are padded to a multiple of this many tokens
TEXTS_AT_ONCE = 32  # most texts in one pass of an evaluation


class Texts(NamedTuple):
    """n texts and their classes.

    tokens: of each text, (length,) int32. labels: class numbers, (n,) int64.
    """

    tokens: list[np.ndarray]
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Texts":
        """Return the texts with these numbers, in their order. rows: (k,) integers."""
        return Texts([self.tokens[row] for row in rows], self.labels[rows])


def encode_texts(records: Sequence[Labelled], classes: Sequence[str], tokenizer: Tokenizer, block_size: int) -> Texts:
    """Return the records as tokens and class numbers.

    A text with more than block_size tokens keeps the last ones, because the head may
    read the last token. The class number of a record is the index of its label in
    `classes`.

    Raises DataError for a text without tokens.
    """
    tokens = [np.array(tokenizer.encode(record.text)[-block_size:], np.int32) for record in records]
    for record, ids in zip(records, tokens, strict=True):
        if not len(ids):
            raise DataError(f"A text of the class {record.label!r:.80} is empty; write it, or remove the record.")
    numbers = {label: number for number, label in enumerate(classes)}
    return Texts(tokens, np.array([numbers[record.label] for record in records], np.int64))


class Rows(NamedTuple):
    """B texts, one in each row.

    Rows are padded on the right, so attention from a text's tokens never reaches the
    padding.

    tokens: (B, W) int32. targets: (B, W) int32, the next token of each position, or -1
    where the text has none. shares: (B, W) float64, the weight of each position's state
    in what the head reads; the weights of a row add up to 1. labels: class numbers,
    (B,) int64.
    """

    tokens: np.ndarray
    targets: np.ndarray
    shares: np.ndarray
    labels: np.ndarray


def width_of(texts: Texts, block_size: int) -> int:
    """Return the width of the rows, W, in tokens.

    It is the length of the longest text, rounded up to a multiple of WIDTH_STEP, and at
    most block_size.
    """
    return min(block_size, -(-max(map(len, texts.tokens)) // WIDTH_STEP) * WIDTH_STEP)


def pad_texts(texts: Texts, block_size: int, pool: Pool) -> Rows:
    """Return a row for each text. pool: which positions the head reads."""
    tokens = np.zeros((len(texts.tokens), width_of(texts, block_size)), np.int32)
    targets = np.full_like(tokens, IGNORED)
    shares = np.zeros(tokens.shape)
    for row, ids in enumerate(texts.tokens):
        n = len(ids)
        tokens[row, :n], targets[row, : n - 1] = ids, ids[1:]
        shares[row, 0 if pool == "mean" else n - 1 : n] = 1.0 / n if pool == "mean" else 1.0
    return Rows(tokens, targets, shares, texts.labels)


def pooled(hidden: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return what the head reads of each text, (B, C): the weighted sum of its states.

    hidden: final hidden states, (B W, C). shares: their weights, (B, W).
    """
    return (hidden.reshape(*shares.shape, -1) * shares[..., None].astype(hidden.dtype)).sum(axis=1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the cross-entropy of each row and its gradient by the logits, in float64.

    The cross-entropy is $-\log softmax(z)[label]$, (n,). Its gradient is
    $softmax(z) - onehot(label)$, (n, classes).

    logits: z, (n, classes). labels: (n,) integers.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1.0
    return -log_p[rows, labels], dlogits


class Losses(NamedTuple):
    """What a micro-batch adds to the figures of its batch.

    of_classes: its part of the mean cross-entropy of the classes, in nats per text.
    of_tokens: its part of the mean negative log-likelihood of the tokens, in nats per
    token; 0 without aux_lm. right: how many of its texts were classified correctly.
    """

    of_classes: float
    of_tokens: float
    right: int


def classification_loss_and_grad(
    model: GPT, rows: Rows, *, aux_lm: float, n_texts: int, n_targets: int, step: int = 0, first_row: int = 0
) -> Losses:
    """Add the gradient of a micro-batch's part of L to model.grads. Return its losses.

    Over the micro-batches of a batch, $of_classes + aux_lm of_tokens$ adds up to L.

    n_texts, n_targets: texts and targets in the whole batch. step, first_row: as in
    `GPT.trace`.
    """
    trace = model.trace(rows.tokens, step=step, first_row=first_row)
    dhidden, of_tokens = np.zeros_like(trace.hidden), 0.0  # (N, C)
    if aux_lm and n_targets:
        log_probability, _, cache = model.log_probability_forward(trace.hidden, rows.targets.reshape(-1))
        # Where the target is -1, this is not read.
        dlog_probability = np.full_like(log_probability, -aux_lm / n_targets)
        dhidden[...] = model.log_probability_backward(dlog_probability, None, cache)
        of_tokens = -float(log_probability.sum(dtype=np.float64)) / n_targets
    read = pooled(trace.hidden, rows.shares)
    logits = model.readout(read)
    nll, dlogits = cross_entropy(logits, rows.labels)
    dread = model.readout_backward((dlogits / n_texts).astype(model.dtype), read)
    dhidden += (dread[:, None] * rows.shares[..., None].astype(model.dtype)).reshape(dhidden.shape)
    model.backward(trace, dhidden)
    right = int(np.count_nonzero(logits.argmax(axis=1) == rows.labels))
    return Losses(float(nll.sum()) / n_texts, of_tokens, right)


class ClassifierGradients:
    """Adds the gradient of L over a batch of texts, one micro-batch after the other.

    Calling it with the sample ids of a batch returns the batch's L, and its figures
    accuracy (share of the texts) and lm_loss (nats per token).
    """

    def __init__(self, texts: Texts, aux_lm: float, pool: Pool, config: LoopConfig):
        self.texts = texts
        self.aux_lm = aux_lm
        self.pool = pool
        self.micro_size = config.batch.micro_size
        self.sampler = RowSampler(len(texts.tokens), config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        batch = pad_texts(self.texts.take(self.sampler.rows(ids)), model.config.block_size, self.pool)
        counts = {"n_texts": len(ids), "n_targets": int(np.count_nonzero(batch.targets != IGNORED))}

        def gradient(part: slice, _) -> tuple[float, Mapping[str, float]]:
            rows, place = Rows(*(array[part] for array in batch)), {"step": step, "first_row": part.start}
            losses = classification_loss_and_grad(model, rows, aux_lm=self.aux_lm, **counts, **place)
            return losses.of_classes, {"accuracy": losses.right, "lm_loss": losses.of_tokens}

        of_classes, figures = accumulate(model.grads, len(ids), self.micro_size, gradient)
        figures["accuracy"] /= len(ids)
        return BatchResult(of_classes + self.aux_lm * figures["lm_loss"], batch.tokens.size, figures)


class ClassifierEvaluation(NamedTuple):
    """The results of a classifier on texts.

    loss: the mean cross-entropy, in nats per text. accuracy: the share of the texts
    whose most probable class is the correct one.
    """

    loss: float
    accuracy: float


def evaluate_classifier(model: GPT, texts: Texts, pool: Pool, console: Console | None = None) -> ClassifierEvaluation:
    """Return the loss and the accuracy of a classifier on texts.

    console: shows how much is done; None = nothing is shown.
    """
    nll, right = 0.0, 0
    for numbers, logits in logits_of_texts(model, texts.tokens, pool, "evaluating", console):
        labels = texts.labels[numbers]
        nll += float(cross_entropy(logits, labels)[0].sum())
        right += int(np.count_nonzero(logits.argmax(axis=1) == labels))
    return ClassifierEvaluation(nll / len(texts.labels), right / len(texts.labels))


def logits_of_texts(
    model: GPT, tokens: Sequence[np.ndarray], pool: Pool, label: str, console: Console | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers, logits) for some texts at a time, until there were all.

    Texts of similar lengths are read together, which saves padding.

    tokens: of each text, (length,) int32, at most block_size. numbers: (k,) int64, of
    the texts that were read. logits: (k, classes). label, console: as in `tracked`.
    """
    order, T = np.argsort([len(ids) for ids in tokens], kind="stable"), model.config.block_size
    texts = Texts(list(tokens), np.zeros(len(tokens), np.int64))  # the class numbers are not read
    at_once = rows_at_once(width_of(texts, T), TEXTS_AT_ONCE)
    starts = range(0, len(order), at_once)
    for first in tracked(starts, len(starts), label, console):
        numbers = order[first : first + at_once]
        rows = pad_texts(texts.take(numbers), T, pool)
        yield numbers, model.readout(pooled(model.hidden(rows.tokens), rows.shares))
