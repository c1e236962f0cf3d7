"""PyTorch on several processes: `python -m benchmarks.peers.torch_ddp_worker`.

DistributedDataParallel with gloo. The first process answers the requests; it starts the
others, and writes a byte to each of them for every update. Imports only PyTorch and the
standard library.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.serving import serve
from benchmarks.peers.torch_files import read_file
from benchmarks.peers.torch_gpt import GPT
from benchmarks.peers.torch_worker import training_step

MODULE = "benchmarks.peers.torch_ddp_worker"


def train(*, processes, **settings):
    """Make training steps on one batch, of which every process has an equal part.

    The settings are those of `torch_worker.train`.
    """
    meeting = str(Path(tempfile.mkdtemp()) / "meeting")
    others = []
    for rank in range(1, processes):
        words = json.dumps({"rank": rank, "processes": processes, "meeting": meeting, **settings})
        others.append(subprocess.Popen([sys.executable, "-m", MODULE, words], stdin=subprocess.PIPE))
    facts, step = join(0, processes, meeting, **settings)

    def lead():
        for other in others:
            other.stdin.write(b".")
            other.stdin.flush()
        step()

    return facts, lead


def join(
    rank, processes, meeting, *, model, mode, threads, parameters, layout, batch, shape, optimizer, grad_clip, **_
):
    """Return the facts of two updates and the function that makes one.

    rank: of this process. meeting: a file through which the processes find each other.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of the machine may have no address
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    network = GPT(**model)
    network.load(parameters, layout)
    own = shape[0] // processes  # rows
    tokens, targets = read_file(batch, torch.int64).view(2, *shape)[:, rank * own : (rank + 1) * own]
    parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
    step = training_step(network, parallel, tokens, targets, mode, optimizer, grad_clip)
    (loss, norm), (second_loss, _) = step(), step()
    losses = torch.tensor([loss, second_loss], dtype=torch.float64)
    distributed.all_reduce(losses)
    loss, second_loss = (losses / processes).tolist()
    return {"loss": loss, "grad_norm": norm, "second_loss": second_loss}, step


def follow(settings):
    """Make an update for each byte of standard input."""
    _, step = join(**settings)
    while sys.stdin.buffer.read(1):
        step()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        follow(json.loads(sys.argv[1]))
    else:
        serve({"train": train})
