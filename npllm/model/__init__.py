"""The model: configuration, flat parameters, the block and the Transformer."""

from npllm.model.actor_critic import ActorCritic
from npllm.model.config import Architecture, ModelConfig
from npllm.model.parameters import Parameters
from npllm.model.trainable import Model, Trainable
from npllm.model.transformer import GPT, Storage, Trace

__all__ = [
    "GPT",
    "ActorCritic",
    "Architecture",
    "Model",
    "ModelConfig",
    "Parameters",
    "Storage",
    "Trace",
    "Trainable",
]
