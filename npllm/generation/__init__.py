"""Generation: KV cache, sampling, streaming."""

from npllm.generation.generate import generate, generate_tokens
from npllm.generation.kv_cache import KVCache

__all__ = ["KVCache", "generate", "generate_tokens"]
