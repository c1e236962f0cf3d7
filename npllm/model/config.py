"""The shape of a model: every number that decides which parameters it has."""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin

from npllm.errors import ConfigError

LONGEST_BLOCK, MOST_LAYERS, MOST_OUTPUTS = 1 << 17, 1024, 1 << 16


def check_choices(section: str, config) -> None:
    """Raise ConfigError if a field of the dataclass `config` that is a Literal holds none of its values."""
    for field in fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(get_args(field.type))
            raise ConfigError(f"{section}.{field.name} is {value!r}, but must be one of {choices}.")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder-only Transformer, apart from its vocabulary (which the tokenizer decides)."""

    n_layer: int = 4
    """number of blocks, L"""
    n_head: int = 4
    """query heads, H; each has the width n_embd / n_head"""
    n_kv_head: int | None = None
    """key/value heads, K; must divide n_head; none = n_head (plain multi-head attention)"""
    n_embd: int = 128
    """width of the residual stream, C"""
    block_size: int = 256
    """longest sequence in tokens, T"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """how each branch's input is normalised"""
    position: Literal["learned", "rotary"] = "learned"
    """a learned vector per position (GPT-2), or rotated queries and keys (Llama)"""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """two matrices around a GELU (GPT-2), or three with a gate (Llama)"""
    bias: bool = True
    """add biases in linear layers and LayerNorm"""
    tie_embeddings: bool = True
    """use the token embedding as the last layer's weight"""
    dropout: float = 0.0
    """probability of dropping an element of the embedding, the attention weights and each branch"""

    def __post_init__(self):
        check_choices("model", self)
        for field in ("n_layer", "n_head", "n_embd", "block_size"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field} is {getattr(self, field)}, but must be at least 1.")
        # A few parameters can be many positions or many layers: these two are not bounded by the memory.
        for field, most in (("block_size", LONGEST_BLOCK), ("n_layer", MOST_LAYERS)):
            if getattr(self, field) > most:
                raise ConfigError(f"model.{field} is {getattr(self, field)}, but must be at most {most}.")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"model.n_embd = {self.n_embd} cannot be divided into model.n_head = {self.n_head} heads of equal "
                f"width; choose a multiple of {self.n_head} for model.n_embd."
            )
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            raise ConfigError(
                f"model.n_kv_head = {self.n_kv_head} must divide model.n_head = {self.n_head}; choose a divisor of it."
            )
        if self.position == "rotary" and self.head_width % 2:
            raise ConfigError(
                f"model.position = 'rotary' turns pairs, so the head width model.n_embd / model.n_head must be even, "
                f"but it is {self.head_width}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout is {self.dropout}, but must be at least 0 and below 1.")

    @property
    def kv_heads(self) -> int:
        """K"""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_width(self) -> int:
        """D"""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """F: 4C; with SwiGLU 8C/3, rounded up to a multiple of 32, so that three matrices weigh what two did."""
        return 4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // 3 // 32) * 32


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """An architecture with its vocabulary: all that is needed to build the model."""

    vocab_size: int
    """number of tokens, V"""
    n_outputs: int = 0
    """outputs of a second head on the final hidden state: 1 for a reward or a value, one a class for a classifier"""
    lora_rank: int = 0
    """rank of what is added to every matrix of the blocks, while all else is frozen; 0 = no LoRA"""
    lora_alpha: float = 16.0
    """what is added is scaled by lora_alpha / lora_rank (Hu et al., "LoRA", 2021)"""
    lora_new_tokens: int = 0
    """tokens at the end of the vocabulary whose rows of embedding and head are trained too"""

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_size < 1:
            raise ConfigError(f"model.vocab_size is {self.vocab_size}, but must be at least 1.")
        for field in ("n_outputs", "lora_rank"):
            if not 0 <= getattr(self, field) <= MOST_OUTPUTS:
                raise ConfigError(f"model.{field} is {getattr(self, field)}, but must be from 0 to {MOST_OUTPUTS}.")
        if not 0 <= self.lora_new_tokens <= (self.vocab_size if self.lora_rank else 0):
            raise ConfigError(
                f"model.lora_new_tokens is {self.lora_new_tokens}, but must be from 0 to model.vocab_size, and 0 "
                "without model.lora_rank."
            )
        if not self.lora_alpha > 0:
            raise ConfigError(f"model.lora_alpha is {self.lora_alpha}, but must be above 0.")

    @property
    def language_model(self) -> "ModelConfig":
        """The same network without a second head, and all of its weights in one piece."""
        return replace(self, n_outputs=0, lora_rank=0, lora_new_tokens=0)

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of forward and backward for one token of a sequence of `length`.

        6 for each weight of a matrix (a multiply and an add, once forward and twice backward), and in the attention of
        each layer 6 * 2 * C for each of the length/2 keys that a position sees on average.
        (Chowdhery et al., "PaLM", 2022, appendix B, with the causal half.)
        """
        C, D = self.n_embd, self.head_width
        attention = C * (self.n_head + 2 * self.kv_heads) * D + C * C
        mlp = (2 if self.mlp == "gelu" else 3) * C * self.mlp_width
        head = self.vocab_size * C
        return 6.0 * (self.n_layer * (attention + mlp) + head) + 6.0 * self.n_layer * C * length
