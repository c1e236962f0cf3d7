"""The model sizes that are timed.

With width and depth, the operations that dominate the time differ.
"""

from typing import NamedTuple

from npllm.model import ModelConfig


class Config(NamedTuple):
    """A model and its batch, (n_rows, block_size) tokens."""

    n_rows: int
    model: ModelConfig

    @property
    def n_tokens(self) -> int:
        """Return the tokens of one batch."""
        return self.n_rows * self.model.block_size

    @property
    def step_flops(self) -> float:
        """Return the floating-point operations of one training step."""
        return self.model.flops_per_token(self.model.block_size) * self.n_tokens


CONFIGS = {
    "cpu": Config(12, ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)),
    "mid": Config(8, ModelConfig(n_layer=8, n_head=8, n_embd=512, block_size=256, vocab_size=4096)),
    "baby": Config(64, ModelConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65)),
    "gpt2": Config(4, ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=64, vocab_size=50257)),
    "default": Config(8, ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=2048)),
}
# Small, but large enough for the kernels to split their work between threads.
TINY = Config(16, ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=512))
