"""The settings of PPO, RLOO and GRPO."""

from dataclasses import dataclass
from typing import Literal

from npllm.errors import ConfigError
from npllm.finetuning.chosen_records import OnBad
from npllm.model.config import check_choices

USUAL_GROUP = 4
LARGEST_DIVISOR = 4096  # that is tried


def nearest_divisor(n: int, usual: int, least: int = 1) -> int:
    """Return the divisor of n whose ratio to `usual` is nearest to 1; `usual` if there
    is none."""
    divisors = [d for d in range(least, min(n, LARGEST_DIVISOR) + 1) if n % d == 0]
    return min(divisors, key=lambda d: max(d, usual) / min(d, usual), default=usual)


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """The settings of PPO, RLOO and GRPO.

    The defaults are those of the sentiment experiment of lm-human-preferences, the code
    of Ziegler et al., 2019. The exceptions are rollout_size (512 there), max_tokens
    (24) and temperature (0.7). That code has no group, entropy_coef or max_update_kl.
    """

    method: Literal["ppo", "rloo", "grpo"] = "ppo"
    """ppo has a critic; rloo and grpo compare responses to the same prompt instead"""
    rollout_size: int | None = None
    """responses per rollout, a multiple of batch.size, and of group with rloo and grpo;
    none = about 4 * batch.size"""
    group: int | None = None
    """responses to each prompt of a rollout, with rloo and grpo;
    none = 4, or another divisor of rollout_size"""
    max_tokens: int = 32
    """length limit of a response in tokens, including the stop token"""
    epochs: int = 4
    """number of times that each rollout is learnt from"""
    temperature: float = 1.0
    """sampling temperature; the logits of policy and reference are divided by it too"""
    kl_coef: float = 0.15
    """initial beta: what a nat of KL divergence from the reference costs"""
    kl_target: float = 6.0
    """target of the KL divergence, in nats per response; beta is adapted to reach it;
    0 = beta is fixed"""
    kl_horizon: int = 10000
    """number of responses over which beta is adapted; the more, the slower"""
    gamma: float = 1.0
    """discount of the rewards per token, with ppo"""
    lam: float = 0.95
    """lambda of generalised advantage estimation (GAE), with ppo"""
    clip: float = 0.2
    """how far the ratio of new to old probability may be from 1 before the policy loss
    is clipped"""
    value_clip: float = 0.2
    """how far a value may be from that in the rollout before its loss is clipped"""
    value_coef: float = 0.1
    """weight of the value loss in the loss"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus in the loss"""
    missing_stop_score: float = -1.0
    """score of a response without a stop token, in place of the reward model's"""
    max_update_kl: float = 0.1
    """limit of the divergence from the policy that wrote the rollout, in nats per
    token; above it, the rest of the rollout is dropped and a new one is written"""

    on_bad: OnBad = "stop"
    """what happens to bad and too long prompts: stop = they are listed and nothing is
    trained; skip = they are left out; truncate = the beginnings of too long prompts are
    cut off, and bad prompts are left out"""

    def __post_init__(self):
        check_choices("ppo", self)
        for field in ("rollout_size", "group", "max_tokens", "epochs", "kl_horizon"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ConfigError(f"ppo.{field} is {value}; set it to at least 1.")
        for field in ("temperature", "clip", "value_clip", "max_update_kl"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}; set it above 0.")
        for field in ("kl_coef", "kl_target", "value_coef", "entropy_coef"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}; set it to at least 0.")
        for field in ("gamma", "lam"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}; set it from 0 to 1.")
        if self.method == "ppo" or self.group is None:
            return
        if self.group < 2 or (self.rollout_size is not None and self.rollout_size % self.group):
            fitting = nearest_divisor(self.rollout_size or USUAL_GROUP, USUAL_GROUP, least=2)
            raise ConfigError(f"ppo.group is {self.group}; set it to a divisor of ppo.rollout_size, such as {fitting}.")
