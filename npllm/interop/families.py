"""The model families of Hugging Face that hold networks of this package.

    GPT-2     LayerNorm, GELU, learned positions, biases
    Llama     RMSNorm, SwiGLU, rotary positions
    Qwen3     the same with QK-norm, without biases

A family is a class of `transformers` with its field names and its tensor names. Here
both stand beside ours. Nothing is loaded or saved approximately: what one side has and
the other has not is refused by name.

Source: configuration_*.py and modeling_*.py of these families in transformers 4 and 5.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.model import Architecture, ModelConfig

LARGEST_NUMBER = 1e30  # of a field
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
EMBEDDINGS = {"learned": "transformer.wte", "rotary": "model.embed_tokens"}  # layers of the families, by positions


def family_of(config: ModelConfig) -> str:
    """Return the family that holds a language model. Raises ConfigError, with the
    fields that stand in the way, where none does."""
    if config.n_outputs:
        raise ConfigError("The model has a second head, which no family holds; export a language model.")
    wanted = {
        "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True, "qk_norm": False},
        "llama": {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": False},
        "qwen3": {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": True, "bias": False},
    }
    wanted["gpt2"]["kv_heads"] = config.n_head
    differences = {
        family: [f"model.{field} = {value}" for field, value in fields.items() if getattr(config, field) != value]
        for family, fields in wanted.items()
    }
    nearest = min(differences, key=lambda family: len(differences[family]))
    if differences[nearest]:
        raise ConfigError(
            f"No family holds this network; the nearest is {nearest}, which needs {', '.join(differences[nearest])}."
        )
    return nearest


def fields_of(config: ModelConfig, family: str) -> dict[str, Any]:
    """Return the fields of config.json that describe the network."""
    shared = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if family == "gpt2":
        return shared | {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "n_inner": config.mlp_width,
            "n_positions": config.block_size,
            "n_ctx": config.block_size,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
        }
    return shared | {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.block_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # for transformers 4
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},  # for transformers 5
        "attention_bias": config.bias,
        "attention_dropout": config.dropout,
        **({"mlp_bias": config.bias} if family == "llama" else {}),
    }


# The values that a family takes where a file lacks the field.
_USUAL = {
    "gpt2": {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": {"mlp_bias": False, "attention_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    "qwen3": {"attention_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": 128},
}
# Our sizes, and their fields.
_GPT2_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_inner": "n_inner",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
_LLAMA_SIZES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
# Fields that change the network, and the values with which they do not.
_OFF: dict[str, tuple] = {
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "use_sliding_window": (None, False),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "reorder_and_upcast_attn": (None, False),
    "scale_attn_weights": (None, True),
    "add_cross_attention": (None, False),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1.0),
    "pruned_heads": (None, {}),
    "auto_map": (None,),  # Python code in the folder computes the network
}


def config_of(fields: Mapping[str, Any], place: str) -> ModelConfig:
    """Return the config of the network that config.json describes.

    place: of the file, for messages. Raises DataError for a family that is not known
    and, by name, for fields that this package cannot hold.
    """
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise DataError(f"{place} has the model_type {family!r:.40}; give a folder of {', '.join(CLASSES)}.")
    fields = _USUAL[family] | fields
    ours_and_theirs = _GPT2_SIZES if family == "gpt2" else _LLAMA_SIZES
    sizes = {ours: fields.get(theirs) for ours, theirs in ours_and_theirs.items()}
    for name, value in sizes.items():
        if type(value) is not int and not (value is None and name in ("n_kv_head", "head_dim", "n_inner")):
            raise DataError(f"{place} gives no whole number for {ours_and_theirs[name]} ({value!r:.40}); get it again.")
    if family == "gpt2":
        choices = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True}
        numbers = {"norm_eps": fields["layer_norm_epsilon"]}
    else:
        choices = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": family == "qwen3"}
        choices |= {"bias": family == "llama" and fields["attention_bias"]}
        numbers = {"norm_eps": fields["rms_norm_eps"], "rope_theta": _rope_theta(fields)}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not abs(value) < LARGEST_NUMBER:
            raise DataError(f"{place} gives no number for {name} ({value!r:.40}); get it again.")
    for name in ("tie_word_embeddings", "attention_bias"):
        if type(fields.get(name, False)) is not bool:
            raise DataError(f"{place} has neither true nor false for {name} ({fields[name]!r:.40}); get it again.")
    numbers = {name: float(value) for name, value in numbers.items()}
    try:
        config = ModelConfig(**sizes, **choices, **numbers, tie_embeddings=fields["tie_word_embeddings"])
    except ConfigError as error:
        raise DataError(f"{place} describes no network of this package: {error}") from error
    _refuse_differences(fields, config, family, place)
    return _without_the_usual(config)


def _rope_theta(fields: Mapping[str, Any]) -> Any:
    """The base of the rotary positions: where transformers 5 writes it, or 4."""
    parameters = fields.get("rope_parameters")
    found = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    return fields.get("rope_theta", 10000.0) if found is None else found


def _without_the_usual(config: ModelConfig) -> ModelConfig:
    """The config with None for sizes that follow from the others."""
    usual = {"n_kv_head": config.kv_heads == config.n_head}
    usual["head_dim"] = config.n_head * config.head_width == config.n_embd
    usual["n_inner"] = replace(config, n_inner=None).mlp_width == config.mlp_width
    return replace(config, **{name: None for name, holds in usual.items() if holds})


def _refuse_differences(fields: Mapping[str, Any], config: ModelConfig, family: str, place: str) -> None:
    """Raise DataError, with all of them, for fields that say something else than the
    network that was understood from the others."""
    ours = fields_of(config, family)
    passed = {"architectures", "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "n_ctx"}
    differences = []
    for name, value in ours.items():
        theirs = fields.get(name)
        if name in passed or (theirs is None and name in ("n_inner", "head_dim", "rope_theta", "num_key_value_heads")):
            continue
        if name == "rope_parameters":
            theirs = value if theirs is None else {**value, **theirs} if isinstance(theirs, Mapping) else theirs
        if theirs != value:
            differences.append(f"{name} = {theirs!r:.90} (needs {value!r})")
    if fields.get("layer_types") not in (None, ["full_attention"] * config.n_layer):
        differences.append(f"layer_types = {fields['layer_types']!r:.60}")
    differences += [f"{name} = {fields[name]!r:.60}" for name, off in _OFF.items() if fields.get(name) not in off]
    if differences:
        raise DataError(f"{place} describes a network that this package does not have: {', '.join(differences)}.")


def state_dict(config: Architecture, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays under a family's names, in its layout: views, not copies.

    arrays: of a model by name, weights or gradients. What is written into a view is
    written into the array: so a file is loaded. The weight of a linear layer is
    (out, in) there, but (in, out) in GPT-2.
    """
    return _gpt2(config, arrays) if config.position == "learned" else _llama(config, arrays)


def linear_layers(config: Architecture) -> list[tuple[str, str, slice]]:
    """Return a family's linear layers in all blocks: our name, their name, and which of
    our columns are their outputs."""
    everything = slice(None)
    if config.position == "learned":
        pairs = {"attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
        pairs |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        layers, place = [(ours, theirs, everything) for ours, theirs in pairs.items()], "transformer.h"
    else:
        q, k = config.n_head * config.head_width, config.kv_heads * config.head_width
        columns = {"q": slice(0, q), "k": slice(q, q + k), "v": slice(q + k, q + 2 * k)}  # of q, k, v side by side
        layers = [("attention.qkv", f"self_attn.{name}_proj", where) for name, where in columns.items()]
        layers += [("attention.out", "self_attn.o_proj", everything)]
        layers += [(f"mlp.{name}", f"mlp.{name}_proj", everything) for name in ("gate", "up", "down")]
        place = "model.layers"
    return [
        (f"blocks.{number}.{ours}", f"{place}.{number}.{theirs}", where)
        for number in range(config.n_layer)
        for ours, theirs, where in layers
    ]


def _gpt2(config, arrays) -> dict[str, np.ndarray]:
    names = {"token_embedding": f"{EMBEDDINGS['learned']}.weight", "position_embedding": "transformer.wpe.weight"}
    norms = {"norm_1": "ln_1", "norm_2": "ln_2"}
    layers = {
        f"blocks.{number}.{ours}": f"transformer.h.{number}.{theirs}"
        for number in range(config.n_layer)
        for ours, theirs in norms.items()
    }
    layers |= {ours: theirs for ours, theirs, _ in linear_layers(config)} | {"final_norm": "transformer.ln_f"}
    names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}
    if not config.tie_embeddings:
        names["lm_head"] = "lm_head.weight"
    return {theirs: arrays[ours] for ours, theirs in names.items()}


def _llama(config, arrays) -> dict[str, np.ndarray]:
    found = {f"{EMBEDDINGS['rotary']}.weight": arrays["token_embedding"]}
    norms = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
    if config.qk_norm:
        norms |= {f"attention.{name}_norm": f"self_attn.{name}_norm" for name in "qk"}
    for number in range(config.n_layer):
        for ours, theirs in norms.items():
            found[f"model.layers.{number}.{theirs}.weight"] = arrays[f"blocks.{number}.{ours}.weight"]
    for kind in ("weight", "bias") if config.bias else ("weight",):
        found |= {
            f"{theirs}.{kind}": arrays[f"{ours}.{kind}"][..., where].T for ours, theirs, where in linear_layers(config)
        }
    found["model.norm.weight"] = arrays["final_norm.weight"]
    if not config.tie_embeddings:
        found["lm_head.weight"] = arrays["lm_head"]
    return found
