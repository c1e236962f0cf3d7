"""Hugging Face's GPT-2: `python -m benchmarks.peers.huggingface_worker`.

Imports only PyTorch and transformers.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.peers.serving import serve
from benchmarks.peers.torch_files import read_file

NAMES = {  # npllm's: Hugging Face's
    "token_embedding": "wte.weight",
    "position_embedding": "wpe.weight",
    "blocks.": "h.",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "final_norm": "ln_f",
}


def generate(*, model, mode, threads, parameters, layout, prompt, n_tokens):
    """Generate the n_tokens likeliest tokens after a prompt, a list of ids.

    mode: the dtype of weights and arithmetic.
    """
    torch.set_num_threads(threads)
    network = GPT2LMHeadModel(
        GPT2Config(
            n_layer=model["n_layer"],
            n_head=model["n_head"],
            n_embd=model["n_embd"],
            n_positions=model["block_size"],
            vocab_size=model["vocab_size"],
            bos_token_id=None,
            eos_token_id=None,  # nothing ends the text before n_tokens
        )
    ).eval()
    load(network.transformer, parameters, layout)
    network.to(getattr(torch, mode))
    ids = torch.tensor([prompt])

    @torch.inference_mode()
    def continuation():
        mask = torch.ones_like(ids)
        text = network.generate(ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, use_cache=True)
        return text[0, len(prompt) :].tolist()

    return {"tokens": continuation()}, continuation


@torch.no_grad()
def load(network, path, layout):
    """Copy npllm's parameters.

    Hugging Face's Conv1D is (in, out), like npllm's linear layers.
    """
    flat = read_file(path, torch.float32)
    theirs = dict(network.named_parameters())
    for name, (start, shape) in layout.items():
        parameter = theirs.pop(their_name(name))
        parameter.copy_(flat[start : start + parameter.numel()].view(shape))
    if theirs:
        raise ValueError(f"parameters that npllm lacks: {sorted(theirs)}")


def their_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


if __name__ == "__main__":
    serve({"generate": generate})
