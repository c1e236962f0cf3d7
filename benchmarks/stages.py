"""The stages after pretraining in `benchmarks train`: SFT, reward model, PPO.

Each works on random tokens with the model of the default recipe, and is compared with a
baseline in the same process. For fine-tuning and the reward model the baseline is
training on the same number of tokens in plain rows. For rollouts it is plain generation
of the same number of texts, without padding, sampling or stop tokens.
"""

from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks.tables import Row
from benchmarks.timing import SHORT_PAUSE, interleave, spread, timed, times_faster
from npllm.data.packing import pack
from npllm.finetuning.sft import Example, PackedGradients, SFTConfig
from npllm.generation import KVCache
from npllm.generation.batched import generate_batch
from npllm.model import GPT, ActorCritic, ModelConfig, Trainable
from npllm.optim import Adam, BatchConfig
from npllm.rlhf.ppo import PPOGradients, Scorers
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.reward import Pairs, RewardConfig, RewardGradients
from npllm.rlhf.sequences import join

MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "vocab_size": 1024}
MODEL |= {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False}
STOP, BATCH_ROWS, RESPONSES, RESPONSE = 0, 16, 128, 64  # RESPONSE: tokens of one

Work = tuple[Callable[[], object], int]  # what is timed, and the tokens that it handles


def measure(name: str, rounds: int) -> list[Row]:
    """Return a row for each kind of work of a stage: "sft", "reward" or "ppo".

    The first row of each comparison is the baseline.
    """
    works = {"sft": sft, "reward": reward, "ppo": ppo}[name]()
    rows = []
    for yardstick, of_yardstick in works:
        seconds = interleave({work: timed(run) for work, (run, _) in of_yardstick.items()}, rounds, SHORT_PAUSE)
        per_token = {work: [s / of_yardstick[work][1] for s in times] for work, times in seconds.items()}
        for work, times in seconds.items():
            rows.append(
                {
                    "config": name,
                    "contender": work,
                    "seconds": median(times),
                    "spread": spread(times),
                    "tokens_per_s": of_yardstick[work][1] / median(times),
                    "ratio": times_faster(per_token[yardstick], per_token[work]),
                }
            )
    return rows


def plain_step(model: GPT, rows: int, width: int) -> Work:
    """Return a training step on rows that are one document each."""
    tokens = random_tokens(rows, width)
    return updating(model, lambda: model.loss_and_grad(tokens, tokens)), rows * width


def sft() -> list[tuple[str, dict[str, Work]]]:
    """Return an update on packed rows, and one on as many plain rows."""
    model, rng = GPT(ModelConfig(**MODEL)), np.random.default_rng(0)
    lengths = rng.integers(16, 64, 200)
    examples = [Example(random_tokens(1, n)[0], np.arange(n) >= n // 3) for n in lengths]
    packed = pack(examples, MODEL["block_size"])
    gradients = PackedGradients(packed, SFTConfig(batch=BatchConfig(size=BATCH_ROWS, micro_size=BATCH_ROWS)))
    ids = np.arange(BATCH_ROWS)
    work = {
        "plain rows": plain_step(model, BATCH_ROWS, MODEL["block_size"]),
        "packed rows": (updating(model, lambda: gradients(model, ids, 0)), packed.tokens[:BATCH_ROWS].size),
    }
    return [("plain rows", work)]


def reward() -> list[tuple[str, dict[str, Work]]]:
    """Return an update on pairs, and one on as many plain rows."""
    model = GPT(ModelConfig(**MODEL, n_outputs=1))
    sides = [join(*random_texts(BATCH_ROWS), 96) for _ in range(2)]
    config = RewardConfig(batch=BatchConfig(size=BATCH_ROWS, micro_size=BATCH_ROWS))
    gradients, ids = RewardGradients(Pairs(*sides), config), np.arange(BATCH_ROWS)
    plain = GPT(ModelConfig(**MODEL))
    work = {
        "plain rows": plain_step(plain, 2 * BATCH_ROWS, 96),
        "pairs": (updating(model, lambda: gradients(model, ids, 0)), 2 * BATCH_ROWS * 96),
    }
    return [("plain rows", work)]


def ppo() -> list[tuple[str, dict[str, Work]]]:
    """Return the two comparisons of PPO.

    They are a rollout with plain generation, and an update of policy and critic with
    one of a plain model.
    """
    config = ModelConfig(**MODEL)
    critic = ModelConfig(**MODEL, n_outputs=1)
    model, reference, judge = ActorCritic(config, critic), GPT(config), GPT(critic)
    prompts, _ = random_texts(RESPONSES)
    settings = PPOSettings(rollout_size=RESPONSES, max_tokens=RESPONSE)
    gradients = PPOGradients(
        settings, prompts, Scorers(reference, judge), stop_id=STOP, minibatch=BATCH_ROWS, micro_size=BATCH_ROWS, seed=0,
        block_size=config.block_size,
    )  # fmt: skip
    gradients.collect(model)
    written = generate_batch(model.policy, prompts, max_tokens=RESPONSE, stop_id=STOP)
    n_written, rows = int(written.lengths.sum()), np.arange(BATCH_ROWS)

    def rollout() -> None:
        generate_batch(model.policy, prompts, max_tokens=RESPONSE, stop_id=STOP)

    width = gradients.buffer.tokens.shape[1]
    writing = {
        "plain generation": (lambda: plain_generation(model.policy), RESPONSES * RESPONSE),
        "rollout": (rollout, n_written),
        "rollout, judged": (lambda: gradients.collect(model), n_written),
    }
    learning = {
        "plain rows": plain_step(reference, BATCH_ROWS, width),
        "update of both": (updating(model, lambda: gradients.accumulate(model, rows)), BATCH_ROWS * width),
    }
    return [("plain generation", writing), ("plain rows", learning)]


def plain_generation(model: GPT) -> None:
    """Generate RESPONSE likeliest tokens after prompts of equal length."""
    cache, pending = KVCache(model, RESPONSES), random_tokens(RESPONSES, 24)
    for _ in range(RESPONSE):
        pending = model.extend(pending, cache).argmax(axis=1)[:, None]


def updating(model: Trainable, gradient: Callable[[], object]) -> Callable[[], None]:
    """Return a function that computes a gradient and makes a step of the optimiser."""
    optimizer = Adam(model, lr=1e-5)

    def update() -> None:
        gradient()
        optimizer.step(grad_clip=1.0)

    return update


def random_tokens(rows: int, width: int) -> np.ndarray:
    """Return tokens without the stop token, (rows, width) int32."""
    return np.random.default_rng(rows).integers(1, MODEL["vocab_size"], (rows, width)).astype(np.int32)


def random_texts(count: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """Return prompts of 8 to 24 tokens, and responses of 32 to 64."""
    rng = np.random.default_rng(count)
    prompts = [random_tokens(1, n)[0].tolist() for n in rng.integers(8, 25, count)]
    return prompts, [random_tokens(1, n)[0] for n in rng.integers(32, 65, count)]
