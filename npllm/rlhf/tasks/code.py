"""The task `code`: write the body of a Python function, given its signature.

The model is pretrained on the Python standard library. The prompts are signatures of
functions in it. The gold reward is 1 if Python parses the prompt and the response
together, and the response ends by itself, within the length limit. Otherwise it is 0.
White space and comments alone are no body, so Python does not parse them. What the body
does is not judged.
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
LONGEST_BODY = 180  # characters
SHORTEST_BODY = 3  # lines
MAX_TOKENS = 72  # of a response
JUDGED_SHARE = 0.1  # of the signatures, held out for judging


def _pretraining() -> RunConfig:
    """Return the default recipe with a smaller vocabulary, limited to four minutes."""
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
    """Writing bodies that Python parses, for signatures of the standard library."""

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
        """Return signatures (the prompts) with their bodies (the responses)."""
        return self.learnt

    def prompts(self) -> list[str]:
        """Return the signatures to train on, each once."""
        return list(dict.fromkeys(record.prompt for record in self.learnt))

    def judged_prompts(self) -> list[str]:
        """Return the held-out signatures, which no stage after pretraining has seen."""
        return list(dict.fromkeys(record.prompt for record in self.judged))

    def gold(self, response: Response) -> float:
        """Return 1.0 if the response ends by itself and completes the prompt, else 0.0.

        It completes the prompt if Python parses both together.
        """
        return float(response.stopped and parses(response.prompt + response.text))


def parses(source: str) -> bool:
    """Return whether Python parses the source.

    It does not parse a function without a body.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
