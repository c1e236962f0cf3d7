"""The configuration of a model, which determines its parameters."""

from dataclasses import dataclass, fields, replace
from math import gcd
from typing import Literal, get_args, get_origin

from npllm.errors import ConfigError

LONGEST_BLOCK, MOST_LAYERS, MOST_OUTPUTS, WIDEST = 1 << 17, 1024, 1 << 16, 1 << 20
MOST_HEADS_TRIED = 1 << 10  # for a message


def check_choices(section: str, config) -> None:
    """Raise ConfigError if a Literal field of a dataclass has none of its values.

    section: the name of the config's section, for the message.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(get_args(field.type))
            raise ConfigError(f"{section}.{field.name} is {value!r}; choose one of {choices}.")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder-only Transformer without its vocabulary (the tokenizer's part)."""

    n_layer: int = 4
    """number of blocks, L"""
    n_head: int = 4
    """query heads, H"""
    n_kv_head: int | None = None
    """key/value heads, K; a divisor of n_head; none = n_head (multi-head attention)"""
    head_dim: int | None = None
    """width of a head, D; none = n_embd / n_head"""
    n_embd: int = 128
    """width of the residual stream, C"""
    block_size: int = 256
    """longest sequence in tokens, T"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """norm of each branch's input"""
    norm_eps: float = 1e-5
    """added to the variance or the mean square before its root"""
    position: Literal["learned", "rotary"] = "learned"
    """a learned vector per position (GPT-2), or rotated queries and keys (Llama)"""
    rope_theta: float = 10000.0
    """base of the rotary frequencies"""
    qk_norm: bool = False
    """RMSNorm of each query head and key head before the attention (Qwen3)"""
    mlp: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """two matrices around a GELU (GPT-2), three with a gate (Llama), or two around a
    squared ReLU (Primer)"""
    n_inner: int | None = None
    """width of the MLP, F; none = 4 n_embd, and 8/3 n_embd with SwiGLU"""
    bias: bool = True
    """add biases in linear layers and LayerNorm"""
    tie_embeddings: bool = True
    """use the token embedding as the weight of the last layer"""
    dropout: float = 0.0
    """dropout probability of the embedding, the attention weights and each branch"""

    def __post_init__(self):
        check_choices("model", self)
        for field in ("n_layer", "n_head", "n_embd", "block_size"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field} is {getattr(self, field)}; set it to at least 1.")
        # Memory does not bound these: few parameters can be many positions or layers.
        for field, most in (("block_size", LONGEST_BLOCK), ("n_layer", MOST_LAYERS)):
            if getattr(self, field) > most:
                raise ConfigError(f"model.{field} is {getattr(self, field)}; set it to at most {most}.")
        for field in ("head_dim", "n_inner"):
            if getattr(self, field) is not None and not 1 <= getattr(self, field) <= WIDEST:
                raise ConfigError(f"model.{field} is {getattr(self, field)}; set it from 1 to {WIDEST}.")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ConfigError(
                f"model.n_embd = {self.n_embd} cannot be divided into model.n_head = {self.n_head} heads of equal "
                f"width; {self._fitting_width()}."
            )
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            raise ConfigError(
                f"model.n_kv_head = {self.n_kv_head} does not divide model.n_head = {self.n_head}; choose a divisor, "
                f"such as {gcd(self.kv_heads, self.n_head)}."
            )
        if self.position == "rotary" and self.head_width % 2:
            raise ConfigError(
                f"model.position = 'rotary' rotates pairs, but the head width "
                f"{'model.n_embd / model.n_head' if self.head_dim is None else 'model.head_dim'} is "
                f"{self.head_width}, which is odd; {self._fitting_width()}."
            )
        for field, least in (("norm_eps", 0.0), ("rope_theta", 1.0)):
            if not least < getattr(self, field) < float("inf"):
                raise ConfigError(f"model.{field} is {getattr(self, field)}; set it above {least:g}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout is {self.dropout}; set it to at least 0 and below 1.")

    def _fitting_width(self) -> str:
        """What to change so that all heads have the same width, even with rotary."""
        if self.head_dim is not None:
            return f"set model.head_dim to {self.head_dim + 1}"
        unit = 2 if self.position == "rotary" else 1
        width = -(-self.n_embd // (unit * self.n_head)) * unit * self.n_head
        fewer = [n for n in range(1, min(self.n_head, MOST_HEADS_TRIED)) if self.n_embd % (unit * n) == 0]
        return f"set model.n_embd to {width}" + (f", or model.n_head to {fewer[-1]}" if fewer else "")

    @property
    def kv_heads(self) -> int:
        """The number of key/value heads, K."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_width(self) -> int:
        """The width of a head, D."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """The width of the MLP, F: if n_inner is None, 4C, and 8C/3 with SwiGLU.

        8C/3 is rounded up to a multiple of 32. Three matrices of this width have as
        many weights as two of 4C.
        """
        if self.n_inner is not None:
            return self.n_inner
        return -(-8 * self.n_embd // 3 // 32) * 32 if self.mlp == "swiglu" else 4 * self.n_embd


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """An architecture with its vocabulary: all that a model is built from."""

    vocab_size: int
    """number of tokens, V"""
    n_outputs: int = 0
    """outputs of a second head on the final hidden state: 1 for a reward or a value,
    for a classifier one per class
    """
    lora_rank: int = 0
    """rank of the product that LoRA adds to every matrix of the blocks, while all other
    weights are frozen; 0 = no LoRA
    """
    lora_alpha: float = 16.0
    """LoRA's product is scaled by lora_alpha / lora_rank (Hu et al., "LoRA", 2021)"""
    lora_new_tokens: int = 0
    """tokens at the end of the vocabulary whose rows of embedding and head are trained
    as well
    """

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_size < 1:
            raise ConfigError(f"model.vocab_size is {self.vocab_size}; set it to at least 1.")
        for field in ("n_outputs", "lora_rank"):
            if not 0 <= getattr(self, field) <= MOST_OUTPUTS:
                raise ConfigError(f"model.{field} is {getattr(self, field)}; set it from 0 to {MOST_OUTPUTS}.")
        if not 0 <= self.lora_new_tokens <= (self.vocab_size if self.lora_rank else 0):
            raise ConfigError(
                f"model.lora_new_tokens is {self.lora_new_tokens}; set it from 0 to model.vocab_size, and to 0 "
                "without model.lora_rank."
            )
        if not self.lora_alpha > 0:
            raise ConfigError(f"model.lora_alpha is {self.lora_alpha}; set it above 0.")

    @property
    def language_model(self) -> "ModelConfig":
        """The same network without a second head and without LoRA."""
        return replace(self, n_outputs=0, lora_rank=0, lora_new_tokens=0)

    def in_words(self) -> str:
        """The architecture in a line, such as "4 layers, width 128, 4 heads, ..."."""
        words = [
            _counted(self.n_layer, "layer"),
            f"width {self.n_embd}",
            _counted(self.n_head, "head") + ("" if self.head_dim is None else f" of {self.head_dim}"),
            f"{self.kv_heads} for keys and values" if self.kv_heads != self.n_head else "",
            f"block {self.block_size}",
            f"vocabulary {self.vocab_size:,}",
            *(self.position, self.norm, self.mlp),
            "" if self.n_inner is None else f"MLP of {self.n_inner}",
            "qk_norm" if self.qk_norm else "",
            _counted(self.n_outputs, "output") if self.n_outputs else "",
            f"LoRA of rank {self.lora_rank}" if self.lora_rank else "",
        ]
        return ", ".join(word for word in words if word)

    def flops_per_token(self, length: int) -> float:
        """Return the floating-point operations of forward and backward for one token.

        length: tokens of its sequence. A weight of a matrix takes 6: a multiply and an
        add, once in the forward and twice in the backward. The attention of a layer
        takes 6 * 2 * H * D for each of the length/2 keys that a position sees on
        average. (Chowdhery et al., "PaLM", 2022, appendix B, with half of the keys
        because attention is causal.)
        """
        C, D = self.n_embd, self.head_width
        attention = C * 2 * (self.n_head + self.kv_heads) * D
        mlp = (3 if self.mlp == "swiglu" else 2) * C * self.mlp_width
        head = self.vocab_size * C
        return 6.0 * (self.n_layer * (attention + mlp) + head) + 6.0 * self.n_layer * self.n_head * D * length
