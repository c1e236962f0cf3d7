"""The model: configuration, flat parameters, the arena, the block and the Transformer."""

from npllm.model.config import Architecture, ModelConfig
from npllm.model.parameters import Parameters
from npllm.model.transformer import GPT

__all__ = ["GPT", "Architecture", "ModelConfig", "Parameters"]
