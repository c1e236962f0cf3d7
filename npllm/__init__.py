"""npllm: a Transformer language model from raw text to generation.

Every gradient is written by hand:

    config = npllm.ModelConfig(n_embd=128, block_size=64, vocab_size=65)
    model = npllm.GPT(config, seed=0)
    loss = model.loss_and_grad(tokens, targets)
    npllm.AdamW(model, lr=1e-3).step(grad_clip=1.0)

The names below are loaded when they are first used, so `import npllm` takes no time.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(
        ("pretrain", "sft", "classify", "reward", "ppo", "dpo", "resume"), "npllm.training.stage_functions"
    ),
    "Run": "npllm.training.run",
    "Classifier": "npllm.finetuning.prediction",
    "GPT": "npllm.model",
    "ModelConfig": "npllm.model",
    "RewardModel": "npllm.rlhf.scoring",
    "SGD": "npllm.optim",
    "Adam": "npllm.optim",
    "AdamW": "npllm.optim",
    "Tokenizer": "npllm.tokenizer",
    "generate": "npllm.generation.generate",
    "load": "npllm.runs.run_folder",
    "set_gemm": "npllm.kernels.gemm",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'npllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
