"""npllm: a Transformer language model from raw text to generation.

A run in one call, with a folder of its own:

    run = npllm.pretrain("notes/", minutes=3)
    print(run.sample("The "))

Or step by step; every gradient is written by hand:

    config = npllm.ModelConfig(n_embd=128, block_size=64, vocab_size=65)
    model = npllm.GPT(config, seed=0)
    loss = model.loss_and_grad(tokens, targets)
    npllm.AdamW(model, lr=1e-3).step(grad_clip=1.0)

The names below are loaded when they are first used, so `import npllm` takes no time.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "npllm.training.stage_functions": ("pretrain", "sft", "classify", "reward", "ppo", "dpo", "resume", "extend"),
    "npllm.training.run": ("Run",),
    "npllm.model": ("GPT", "ModelConfig"),
    "npllm.model.inspection": ("inspect",),
    "npllm.optim": ("SGD", "Adam", "AdamW", "Muon"),
    "npllm.tokenizer": ("Tokenizer", "byte_tokenizer", "train_bpe", "train_char"),
    "npllm.data.sampler": ("batches",),
    "npllm.generation.generate": ("generate",),
    "npllm.runs.run_folder": ("load", "save"),
    "npllm.finetuning.prediction": ("Classifier",),
    "npllm.rlhf.scoring": ("RewardModel",),
    "npllm.kernels.gemm": ("set_gemm",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'npllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
