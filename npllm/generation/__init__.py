"""Generation: KV cache, sampling, streaming."""

from npllm.generation.generate import check_writes, generate, generate_tokens
from npllm.generation.kv_cache import KVCache

__all__ = ["KVCache", "check_writes", "generate", "generate_tokens"]
