"""What a model writes while it is pretrained: always the same prompt and random
numbers."""

from collections.abc import Callable

from npllm.data.prompt_format import PromptFormat
from npllm.data.shards import TokenShard
from npllm.generation import generate_tokens
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

PROMPT_TOKENS = 16
WRITTEN_TOKENS = 48  # at each evaluation


def prompt_tokens(shard: TokenShard, start: int, block_size: int) -> list[int]:
    """The tokens of a shard from `start` on that are a prompt: at most PROMPT_TOKENS,
    half of block_size, and those of one document."""
    length = min(PROMPT_TOKENS, -(-block_size // 2))
    tokens = shard.tokens[start : start + length].tolist()
    return tokens[: tokens.index(shard.eot_id)] if shard.eot_id in tokens else tokens


def sampler(tokenizer: Tokenizer, shard: TokenShard, block_size: int, seed: int) -> Callable[[GPT], tuple[str, str]]:
    """Return a function of a model that returns the start of the validation text, and
    the text that the model writes after it."""
    prompt = prompt_tokens(shard, 0, block_size) or shard.tokens[:1].tolist()
    asked = PromptFormat(tokenizer)

    def write(model: GPT) -> tuple[str, str]:
        tokens = generate_tokens(model, prompt, max_tokens=WRITTEN_TOKENS, seed=seed)
        return tokenizer.decode(prompt), asked.decode(tokens)

    return write
