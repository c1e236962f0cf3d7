"""PyTorch at its best: `python -m benchmarks.peers.torch_worker`.

Imports only PyTorch and the standard library.
"""

import time

import torch

from benchmarks.peers.serving import serve
from benchmarks.peers.torch_files import read_file, write_file
from benchmarks.peers.torch_gpt import GPT
from benchmarks.peers.torch_ops import OPERATIONS


def train(*, model, mode, threads, parameters, layout, batch, shape, optimizer, grad_clip):
    """Make training steps on one batch.

    mode: any of "compiled" and "bf16" in one string. batch: a file with tokens and
    targets, int64, (2, *shape).
    """
    torch.set_num_threads(threads)
    if "bf16" in mode:
        refuse_slow_bfloat16()
    network = GPT(**model)
    network.load(parameters, layout)
    tokens, targets = read_file(batch, torch.int64).view(2, *shape)
    step = training_step(network, network, tokens, targets, mode, optimizer, grad_clip)
    (loss, norm), (second_loss, _) = step(), step()
    return {"loss": loss, "grad_norm": norm, "second_loss": second_loss}, step


def training_step(network, caller, tokens, targets, mode, optimizer, grad_clip):
    """Return a function that makes an update and returns loss and gradient norm.

    caller: the network, or what calls it. mode: as in `train`.
    """
    matrices = [p for p in network.parameters() if p.dim() == 2]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    decay = optimizer.pop("weight_decay")
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, fused=True, **optimizer)
    loss_of = torch.compile(caller) if "compiled" in mode else caller

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode):
            loss = loss_of(tokens, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    return step


@torch.no_grad()
def operation(*, name, inputs, results, threads):
    """Run one operation of `torch_ops`.

    inputs: file, dtype and shape of each. results: the files that the first results are
    written to.
    """
    torch.set_num_threads(threads)
    tensors = [read_file(path, getattr(torch, dtype)).view(shape).clone() for path, dtype, shape in inputs]
    work = torch.no_grad()(OPERATIONS[name](*tensors))
    for path, result in zip(results, work(), strict=True):
        write_file(path, result)
    return {}, work


def refuse_slow_bfloat16(size=256, limit=5.0):
    """Raise RuntimeError when PyTorch's bfloat16 is very slow.

    It is on CPUs without instructions for it; nobody would use it there, and its
    benchmark would take too long.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        a @ a
        start = time.perf_counter()
        a @ a
        seconds[dtype] = time.perf_counter() - start
    factor = seconds[torch.bfloat16] / seconds[torch.float32]
    if factor > limit:
        raise RuntimeError(f"on this CPU, a bfloat16 product takes {factor:.0f} times as long as a float32 one")


if __name__ == "__main__":
    serve({"train": train, "operation": operation})
