"""The model: configuration, flat parameters, the arena, the block and the Transformer."""

from npllm.model.actor_critic import ActorCritic
from npllm.model.config import Architecture, ModelConfig
from npllm.model.parameters import Parameters
from npllm.model.transformer import GPT, Storage, Trace

__all__ = ["GPT", "ActorCritic", "Architecture", "ModelConfig", "Parameters", "Storage", "Trace"]
