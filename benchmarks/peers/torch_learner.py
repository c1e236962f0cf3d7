"""PyTorch's best effort at learning: `python -m benchmarks.peers.torch_learner`.

Network, initial values and optimiser are nanoGPT's (Karpathy, 2022), compiled. The rate
follows the clock, so that the last update has the lowest one. Imports only PyTorch and
the standard library.
"""

import math
import time

import torch

from benchmarks.peers.serving import serve
from benchmarks.peers.torch_files import read_file
from benchmarks.peers.torch_gpt import GPT

WARM_UP, LAST_RATE = 0.02, 0.05  # shares of the time, and of the rate
LOOKS = 12  # evaluations before the last one; their time does not count


def learn(*, train, val, val_bytes, vocab_size, model, rows, optimizer, seconds, seed, threads):
    """Train for `seconds`, and evaluate on the whole validation text.

    train, val: files of tokens, int32. rows: sequences in a batch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train, val = (read_file(path, torch.int32).long() for path in (train, val))
    T = model["block_size"]
    network = GPT(**model, vocab_size=vocab_size)
    initialise(network, model["n_layer"])
    loss_of = torch.compile(network)
    decay = optimizer.pop("weight_decay")
    matrices = [p for p in network.parameters() if p.dim() == 2]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, fused=True, **optimizer)
    peak = optimizer["lr"]
    windows = endless_windows(len(train), T, rows)

    def update(share):
        rate = peak * min(1.0, share / WARM_UP + 1e-3) * (1.0 - (1.0 - LAST_RATE) * min(1.0, share))
        for group in adamw.param_groups:
            group["lr"] = rate
        at = next(windows)[:, None] + torch.arange(T)
        loss_of(train[at], train[at + 1]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    update(0.0)  # compiles, which is not timed
    spent, n_updates, curve = 0.0, 0, []
    while spent < seconds:
        start = time.perf_counter()
        update(spent / seconds)
        spent += time.perf_counter() - start
        n_updates += 1
        if spent > seconds * 2.0 ** (len(curve) - LOOKS):
            curve.append((spent, bits_per_byte(network, val[:16384], T, val_bytes * 16384 / len(val))))
    bits = bits_per_byte(network, val, T, val_bytes)
    facts = {
        "bits_per_byte": bits,
        "seconds": spent,
        "tokens": n_updates * rows * T,
        "parameters": sum(p.numel() for p in network.parameters()),
        "curve": [*curve, (spent, bits)],
    }
    return facts, lambda: None


def initialise(network, n_layer):
    """nanoGPT's initial values: N(0, 0.02), and less where a branch ends."""
    for name, p in network.named_parameters():
        if p.dim() == 2:
            ends = name.endswith(("attention.out.weight", "mlp.down.weight"))
            torch.nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if ends else 0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)


def endless_windows(n_tokens, T, rows):
    """Yield the starts of `rows` windows; each epoch has every window once."""
    while True:
        shift = int(torch.randint(T, ()))
        starts = shift + T * torch.randperm((n_tokens - 1 - shift) // T)
        yield from starts[: len(starts) // rows * rows].view(-1, rows)


@torch.no_grad()
def bits_per_byte(network, tokens, T, n_bytes):
    """Return the bits of all tokens but the first, per byte; windows do not overlap."""
    nats, n = 0.0, len(tokens) - 1
    for start in range(0, n, T):
        end = min(start + T, n)
        nats += (end - start) * network(tokens[None, start:end], tokens[None, start + 1 : end + 1]).item()
    return nats / math.log(2.0) / n_bytes


if __name__ == "__main__":
    serve({"learn": learn})
