"""Code that parses: a model pretrained on the Python standard library writes bodies for its functions' signatures.

The gold reward is 1 when Python parses the prompt and the response together, the response ends by itself, and there is
more in it than white space and comments. What the body does is not judged.
"""

import ast
import warnings
from dataclasses import replace

from npllm.data.corpora import place_of
from npllm.data.docstrings import stdlib_functions
from npllm.data.records import Demonstration
from npllm.finetuning.sft import SFTConfig, SFTSettings
from npllm.optim import BatchConfig, OptimConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.responses import Response
from npllm.rlhf.reward import RewardConfig, RewardSettings
from npllm.rlhf.tasks.task import Recipe, Task
from npllm.training.config import RunConfig, TrainConfig, load_recipe

LONGEST_PROMPT = 90  # characters
LONGEST_BODY = 180
SHORTEST_BODY = 3  # lines
MAX_TOKENS = 72
JUDGED_SHARE = 0.1  # of the signatures, kept from training


def _pretraining() -> RunConfig:
    """The default recipe, with a smaller vocabulary, for four minutes."""
    config = load_recipe("default")
    return replace(
        config,
        data=replace(config.data, vocab_size=1024),
        train=replace(config.train, minutes=4.0),
    )


def _improvement(method: str) -> PPOConfig:
    return PPOConfig(
        ppo=PPOSettings(method=method, rollout_size=128, max_tokens=MAX_TOKENS, epochs=2, kl_coef=0.05, kl_target=0.0),
        train=TrainConfig(steps=96, checkpoint_every=48),
    )


class Code(Task):
    """See above."""

    name = "code"
    recipe = Recipe(
        pretrain=_pretraining(),
        sft=SFTConfig(
            sft=SFTSettings(epochs=1),
            optim=OptimConfig(lr=5e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01),
            batch=BatchConfig(size=16, micro_size=8),
            train=TrainConfig(eval_every=50, checkpoint_every=100),
        ),
        reward=RewardConfig(
            reward=RewardSettings(epochs=2),
            optim=OptimConfig(lr=3e-4, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01),
            train=TrainConfig(eval_every=50, checkpoint_every=100),
        ),
        ppo=_improvement("ppo"),
        rloo=_improvement("rloo"),
        grpo=_improvement("grpo"),
        dpo=DPOConfig(train=TrainConfig(eval_every=50, checkpoint_every=100)),
        responses_per_prompt=8,
        n_pairs=4000,
    )

    def __init__(self):
        fitting = [
            record
            for record in stdlib_functions()
            if len(record.prompt) <= LONGEST_PROMPT
            and len(record.response) <= LONGEST_BODY
            and record.response.count("\n") >= SHORTEST_BODY
        ]
        self.judged = [record for record in fitting if place_of(record.prompt) < JUDGED_SHARE]
        self.learnt = [record for record in fitting if place_of(record.prompt) >= JUDGED_SHARE]

    def demonstrations(self) -> list[Demonstration]:
        """Signatures and bodies."""
        return self.learnt

    def prompts(self) -> list[str]:
        """Signatures, each once."""
        return list(dict.fromkeys(record.prompt for record in self.learnt))

    def judged_prompts(self) -> list[str]:
        """Signatures that no stage after pretraining has seen."""
        return list(dict.fromkeys(record.prompt for record in self.judged))

    def gold(self, response: Response) -> float:
        """1 or 0."""
        return float(response.stopped and parses(response.prompt + response.text))


def parses(source: str) -> bool:
    """Whether this is Python, with more in its last function than a signature."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
