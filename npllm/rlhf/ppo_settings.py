"""The settings of PPO, RLOO and GRPO."""

from dataclasses import dataclass
from typing import Literal

from npllm.errors import ConfigError
from npllm.finetuning.chosen_records import OnBad
from npllm.model.config import check_choices


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Defaults are those of lm-human-preferences (Ziegler et al., 2019) unless they say otherwise."""

    method: Literal["ppo", "rloo", "grpo"] = "ppo"
    """ppo has a critic; rloo and grpo compare the responses to one prompt"""
    rollout_size: int = 128
    """responses per rollout; batch.size of them make one update (512, in a larger world)"""
    group: int = 4
    """responses per prompt in a rollout with rloo and grpo"""
    max_tokens: int = 32
    """longest response, the stop token included"""
    epochs: int = 4
    """times that a rollout is learnt from"""
    temperature: float = 1.0
    """of the policy, the reference and the rollouts"""
    kl_coef: float = 0.15
    """beta at first: what a nat of divergence from the reference costs"""
    kl_target: float = 6.0
    """nats per response that beta is adapted to; 0 = beta stays"""
    kl_horizon: int = 10000
    """responses over which beta adapts"""
    gamma: float = 1.0
    """discount per token"""
    lam: float = 0.95
    """lambda of the generalised advantage estimation"""
    clip: float = 0.2
    """of the ratio of new to old probabilities"""
    value_clip: float = 0.2
    """of the change of a value in one rollout"""
    value_coef: float = 0.1
    """weight of the value loss"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus"""
    missing_stop_score: float = -1.0
    """score of a response without a stop token, instead of the reward model's"""
    max_update_kl: float = 0.1
    """nats per token from the rollout's policy at which the rest of its minibatches is left out"""

    on_bad: OnBad = "stop"
    """what becomes of prompts that are bad or too long: stop = all are named and nothing is trained; skip = they are
    left out; truncate = those that are too long lose their beginnings, the others are left out"""

    def __post_init__(self):
        check_choices("ppo", self)
        for field in ("rollout_size", "group", "max_tokens", "epochs", "kl_horizon"):
            if getattr(self, field) < 1:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be at least 1.")
        for field in ("temperature", "clip", "value_clip", "max_update_kl"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be above 0.")
        for field in ("kl_coef", "kl_target", "value_coef", "entropy_coef"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must not be negative.")
        for field in ("gamma", "lam"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be from 0 to 1.")
        if self.method != "ppo" and (self.group < 2 or self.rollout_size % self.group):
            raise ConfigError(f"ppo.group = {self.group} must be at least 2 and divide ppo.rollout_size.")
