"""`npllm dpo`: direct preference optimisation.

The policy learns from the pairs directly, without a reward model and without rollouts.
`losses.direct_preference` has the loss. The reference is the policy before training.
Its log-probabilities never change, so they are computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from npllm.data.records import Preference, read_preferences
from npllm.data.sampler import RowSampler
from npllm.data.splitting import split_records
from npllm.errors import ConfigError
from npllm.finetuning.adaptation import adapted
from npllm.finetuning.stage_run import (
    RecordSettings,
    StageConfig,
    Usual,
    describe_length,
    fix_length,
    micro_batch,
    new_state,
)
from npllm.model import GPT
from npllm.optim import BatchConfig, OptimConfig
from npllm.output import shell_word
from npllm.reference.lm_head_loss import IGNORED
from npllm.rlhf.losses import direct_preference
from npllm.rlhf.reward import Pairs, encode_pairs, preferences_of
from npllm.rlhf.sequences import rows_in_part, sequence_log_probability
from npllm.runs.inputs import Copies, checked_records, load_model, policy_checkpoint
from npllm.runs.run_folder import RunFolder
from npllm.runs.summary import write_summary
from npllm.training.job import Job
from npllm.training.loop import BatchResult, accumulate
from npllm.training.machine import usable_dtype
from npllm.training.memory import Work
from npllm.training.stage import Figures, Stage


@dataclass(frozen=True, kw_only=True)
class DPOSettings(RecordSettings):
    """How DPO uses the pairs."""

    # With 1.5 times as many updates, a small model preferred the chosen responses, but
    # no longer wrote such responses itself.
    section, usual = "dpo", Usual(epochs=1.0, batch=32, least_batch=4, least_updates=32)
    beta: float = 0.1
    """beta: what a nat of divergence from the reference costs; a smaller one lets the
    policy move further (Rafailov et al., 2023: 0.1)"""

    def __post_init__(self):
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"dpo.beta is {self.beta}; set it above 0.")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(StageConfig):
    """All settings of a DPO run. batch.size counts pairs."""

    lengthened_by, fits_batch = "train.steps or dpo.epochs", True
    dpo: DPOSettings = field(default_factory=DPOSettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.0)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=None, micro_size=32))


class DPOGradients:
    """Computes the DPO loss and its gradient for a batch of pairs, in micro-batches."""

    def __init__(self, pairs: Pairs, reference: GPT, config: DPOConfig):
        self.pairs, self.beta, self.micro_size = pairs, config.dpo.beta, config.batch.micro_size
        self.reference = reference_log_probability(reference, pairs)  # (2, pairs)
        self.sampler = RowSampler(len(pairs.chosen.tokens), config.train.seed)

    def __call__(self, model: GPT, ids: np.ndarray, step: int) -> BatchResult:
        rows = self.sampler.rows(ids)

        def gradient(micro_batch: slice, _) -> tuple[float, Mapping[str, float]]:
            part, first = rows[micro_batch], 2 * micro_batch.start
            loss, margin = preference_gradient(
                model, self.pairs.take(part), self.reference[:, part], self.beta, n_pairs=len(rows), first_row=first
            )
            return loss, {"accuracy": float(np.count_nonzero(margin > 0))}

        loss, sums = accumulate(model.grads, len(rows), self.micro_size, gradient)
        tokens = 2 * len(rows) * self.pairs.chosen.tokens.shape[1]
        return BatchResult(loss, tokens, {"accuracy": sums["accuracy"] / len(rows)})


def preference_gradient(
    model: GPT, pairs: Pairs, reference: np.ndarray, beta: float, *, n_pairs: int, first_row: int = 0
) -> tuple[float, np.ndarray]:
    """Add the gradient of the DPO loss of P pairs to the model's gradients.

    Returns the loss and the margins, (P,) float64: the implicit reward of the chosen
    response minus that of the rejected one.

    reference: (2, P), from `reference_log_probability`. n_pairs: the number of pairs in
    the whole batch, of which these may be a part. first_row: the number of rows of the
    batch before these.
    """
    sequences = pairs.together()
    trace = model.trace(sequences.tokens, first_row=first_row)
    log_probability, _, cache = model.log_probability_forward(trace.hidden, sequences.targets.reshape(-1))
    sums = log_probability.reshape(2, -1, sequences.tokens.shape[1]).sum(axis=2, dtype=np.float64)  # (2, P)
    loss, dchosen, drejected = direct_preference(*sums, *reference, beta, n_pairs)
    gradient = np.concatenate([dchosen, drejected])[:, None] * (sequences.targets != IGNORED)
    dhidden = model.log_probability_backward(gradient.reshape(-1).astype(model.dtype), None, cache)
    model.backward(trace, dhidden)
    margins = sums - reference
    return loss, beta * (margins[0] - margins[1])


def reference_log_probability(reference: GPT, pairs: Pairs) -> np.ndarray:
    """Return the log-probability of each whole response, (2, P) float64.

    Row 0 has the chosen responses, row 1 the rejected ones.
    """
    return np.stack([sequence_log_probability(reference, side).sum(axis=1) for side in pairs])


def dpo_loss(model: GPT, pairs: Pairs, reference: np.ndarray, beta: float) -> float:
    """Return the mean DPO loss of the pairs in nats, without any gradient.

    reference: (2, P), from `reference_log_probability`.
    """
    return direct_preference(*reference_log_probability(model, pairs), *reference, beta)[0]


def dpo_inputs(config: DPOConfig, base: Path, preferences: Sequence[Preference]) -> Copies:
    """Return what the run copies: the config, the policy, and the split preferences.

    The config gets the number of updates. Raises DataError if a preference does not fit
    into the policy's context.
    """
    checkpoint, tokenizer, model_config = policy_checkpoint(base)
    encode_pairs(preferences, tokenizer, model_config.block_size)  # raises where one does not fit
    train_records, val_records = split_records(preferences, config.dpo.val_fraction, config.train.seed)
    config = fix_length(config, config.dpo, len(train_records))
    return Copies(config, tokenizer, {"policy": checkpoint}, {"train": train_records, "val": val_records})


class DPO(Stage[DPOConfig]):
    """The stage of `npllm dpo`."""

    name, config_type = "dpo", DPOConfig
    models, records = ("policy",), ("train", "val")
    first_options = ("dpo.beta", "dpo.epochs", "adapt.lora_rank", "optim.lr", "batch.size", "train.seed")

    def inputs(self, config: DPOConfig, console: Console, run: Positional[Path], *, data: Path) -> Copies:
        """Return the policy and the preferences.

        Args:
            run: folder of the run to start from (npllm sft), or a checkpoint in it
            data: jsonl, csv or tsv with prompt (in jsonl perhaps messages),
                chosen and rejected
        """
        return dpo_inputs(config, run, preferences_of(data, config.dpo, run, console))

    def job(self, run: RunFolder, config: DPOConfig) -> Job:
        """Return the training job: the policy, its reference, and the encoded pairs."""
        base, tokenizer, dtype = load_model(run, "policy"), run.load_tokenizer(), usable_dtype(config.train.dtype)
        model = adapted(base, config.adapt, dropout=0.0, seed=config.train.seed, dtype=dtype)
        state = new_state(model, config)
        pairs, val_pairs = (
            encode_pairs(read_preferences(checked_records(run, name)), tokenizer, model.config.block_size)
            for name in ("train", "val")
        )
        val_reference = reference_log_probability(base, val_pairs)
        rows, width = 2 * micro_batch(config), pairs.width
        return Job(
            state=state,
            gradients=DPOGradients(pairs, base, config),
            validate=lambda model: dpo_loss(model, val_pairs, val_reference, config.dpo.beta),
            work=Work(rows=rows, width=width, read_rows=rows_in_part(width), policy=True),
            readers=[base],
            description=describe_length(config, len(pairs.chosen.tokens), "pairs"),
            shown=("accuracy",),
        )

    def held_out_figures(self, run: RunFolder, config: DPOConfig, model: GPT, console: Console) -> Figures:
        """The loss on the held-out pairs, and how often the policy prefers the chosen
        response by more than its reference does."""
        tokenizer, T = run.load_tokenizer(), model.config.block_size
        pairs = encode_pairs(read_preferences(checked_records(run, "val")), tokenizer, T)
        reference = reference_log_probability(load_model(run, "policy"), pairs)
        policy = reference_log_probability(model, pairs)
        chosen, rejected = policy - reference
        return [
            ("loss", f"{direct_preference(*policy, *reference, config.dpo.beta)[0]:.4f} nats per pair"),
            ("accuracy", f"{(chosen > rejected).mean():.1%} of the pairs are ranked rightly"),
            ("text", f"{chosen.size:,} held-out pairs"),
        ]

    def report(self, run: RunFolder, config: DPOConfig, job: Job, console: Console) -> str:
        """Write and print the loss on the held-out pairs."""
        with console.status("evaluating"):
            val_loss = job.validate(job.state.model)
        write_summary(run, job.state, {"val_loss": val_loss})
        console.print(f"loss {val_loss:.4f} on held-out pairs")
        return f"npllm generate {shell_word(run.path)}"


STAGE = DPO()
