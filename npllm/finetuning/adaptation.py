"""Make the model of a later training from a trained one.

`adapted` makes the model. `lr_scales` says which of its weights are trained: all, only
the upper blocks, or LoRA's factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from npllm.errors import ConfigError
from npllm.model import GPT, ModelConfig, Parameters, Storage, Trainable
from npllm.model.parameters import TOKEN_TABLES, name_in_model, weight_shapes
from npllm.reference.random import random_normal
from npllm.reference.random_streams import NEW_TOKEN_ROWS


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Which weights are trained, and how fast."""

    lora_rank: int = 0
    """rank of the factors that are trained instead of the weights (Hu et al., 2021);
    0 = no LoRA"""
    lora_alpha: float = 16.0
    """the product of the factors is multiplied by lora_alpha / lora_rank"""
    frozen_blocks: int = 0
    """number of blocks that are not trained, from the first on, with the embedding;
    0 = train everything"""
    layer_decay: float = 1.0
    """learning rate of each layer, divided by that of the layer above it
    (Clark et al., "ELECTRA", 2020); 1 = the same for all layers"""

    def __post_init__(self):
        for field in ("lora_rank", "frozen_blocks"):
            if getattr(self, field) < 0:
                raise ConfigError(f"adapt.{field} is {getattr(self, field)}; set it to at least 0.")
        if not self.lora_alpha > 0:
            raise ConfigError(f"adapt.lora_alpha is {self.lora_alpha}; set it above 0.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"adapt.layer_decay is {self.layer_decay}; set it above 0 and to at most 1.")
        if self.lora_rank and self.frozen_blocks:
            raise ConfigError("adapt.lora_rank freezes every block already; leave out adapt.frozen_blocks.")


def adapted(
    base: GPT,
    config: AdaptConfig,
    *,
    vocab_size: int | None = None,
    n_outputs: int = 0,
    dropout: float | None = None,
    seed: int = 0,
    dtype: str | None = None,
) -> GPT:
    """Return a model to train, which computes the same as `base`.

    The parameters are copies: training the model does not change `base`.

    vocab_size: the base's, or more for new special tokens. `copy_weights` says which
    values their rows get. With LoRA the new rows are trained, the other rows are not.
    n_outputs: outputs of a second head. It is copied if the base has one of this size,
    else its weights are random (`seed`).
    dropout, dtype: None = those of the base.

    Raises ConfigError if config.frozen_blocks is more than the blocks of the base.
    """
    check_blocks(config, base.config)
    vocab_size = vocab_size or base.config.vocab_size
    model_config = replace(
        base.config,
        vocab_size=vocab_size,
        n_outputs=n_outputs,
        dropout=base.config.dropout if dropout is None else dropout,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_new_tokens=vocab_size - base.config.vocab_size if config.lora_rank else 0,
    )
    dtype = dtype or base.dtype_name
    frozen = None
    if config.lora_rank:
        frozen = Parameters(weight_shapes(model_config), "float32" if dtype == "bf16" else dtype)
        copy_weights(base, frozen, seed)
    model = GPT(model_config, seed=seed, dtype=dtype, storage=Storage(frozen=frozen))
    if not config.lora_rank:
        copy_weights(base, model.params, seed)
    for name in TOKEN_TABLES:
        if (new_rows := model.params.get(f"{name}.new_rows")) is not None:
            new_rows[...] = frozen[name][-len(new_rows) :]
    if n_outputs and base.config.n_outputs == n_outputs:
        for name in ("readout.weight", "readout.bias"):
            model.params[name][...] = base.params[name]
    return model


def copy_weights(base: GPT, into: Mapping[str, np.ndarray], seed: int) -> None:
    """Copy the weights of the base's language model, with LoRA's factors merged in.

    `into` may have more rows for tokens than the base. These rows are drawn from a
    normal distribution with the mean and the standard deviation of the base's rows, so
    that new tokens look like other tokens and differ from one another from the start.
    """
    source = base.merged()
    for name in weight_shapes(base.config):
        rows, new = source[name], into[name][len(source[name]) :]
        into[name][: len(rows)] = rows
        if len(new):
            draws = random_normal(new.size, seed=seed, stream=NEW_TOKEN_ROWS).reshape(new.shape)
            new[...] = rows.mean(axis=0) + rows.std(axis=0) * draws


def check_blocks(config: AdaptConfig, model: ModelConfig) -> None:
    """Raise ConfigError if config.frozen_blocks is more than the model's blocks."""
    if config.frozen_blocks > model.n_layer:
        raise ConfigError(
            f"adapt.frozen_blocks is {config.frozen_blocks}, but the model has {model.n_layer} blocks; lower it."
        )


def lr_scales(config: AdaptConfig, model: Trainable) -> dict[str, float]:
    """Return the factor of the learning rate for each parameter, by name; 0 = frozen.

    Layers are numbered in each network of the model: 0 is the embedding, 1 to L are the
    blocks, and L + 1 is all that comes after them.
    """
    return {
        name_in_model(part, name): _lr_scale(config, _layer(name, network.config), network.config)
        for part, network in model.parts().items()
        for name in network.params
    }


def _lr_scale(config: AdaptConfig, layer: int, model: ModelConfig) -> float:
    frozen = config.frozen_blocks and layer <= config.frozen_blocks
    return 0.0 if frozen else config.layer_decay ** (model.n_layer + 1 - layer)


def _layer(name: str, model: ModelConfig) -> int:
    if name.startswith(("token_embedding", "position_embedding")):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else model.n_layer + 1
