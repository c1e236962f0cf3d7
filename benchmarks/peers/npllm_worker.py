"""npllm in its own process: `python -m benchmarks.peers.npllm_worker`."""

import json
from pathlib import Path

import numpy as np

import npllm.kernels  # noqa: F401  (here, not with the first model: the peers' imports are not timed either)
from benchmarks.peers.serving import fingerprint, serve
from npllm.generation import generate_tokens
from npllm.model import GPT, ModelConfig
from npllm.optim import AdamW
from npllm.planning.speed import Probe, measure_memory
from npllm.tokenizer import Tokenizer
from npllm.tokenizer import train_bpe as learn_bpe


def train(*, model, mode, threads, parameters, layout, batch, shape, optimizer, grad_clip):
    """Make training steps on one batch.

    batch: a file with tokens and targets, int64, (2, *shape).
    """
    network = load_model(model, mode, parameters)
    tokens, targets = np.fromfile(batch, np.int64).reshape(2, *shape)
    adamw = AdamW(network, **optimizer)

    def step():
        loss = network.loss_and_grad(tokens, targets)
        return loss, adamw.step(grad_clip=grad_clip)

    (loss, norm), (second_loss, _) = step(), step()
    return {"loss": float(loss), "grad_norm": float(norm), "second_loss": float(second_loss)}, step


def probe(*, model, micro_size, probed_threads, probed_ranks, **_):
    """Measure the machine as `npllm plan` does, for so many ranks."""
    work = Probe(ModelConfig(**model), micro_size, "float32", probed_threads, probed_ranks)
    return {"flops": work.flops, "memory_bandwidth": measure_memory()}, work


def generate(*, model, mode, threads, parameters, layout, prompt, n_tokens):
    """Generate the n_tokens likeliest tokens after a prompt, a list of ids."""
    network = load_model(model, mode, parameters)

    def continuation():
        return list(generate_tokens(network, prompt, max_tokens=n_tokens, temperature=0.0))

    return {"tokens": continuation()}, continuation


def train_bpe(*, texts, vocab_size):
    """Learn a byte-level BPE vocabulary. texts: a JSON file."""
    documents = json.loads(Path(texts).read_text())

    def learn():
        return learn_bpe(documents, vocab_size)

    tokenizer = learn()
    n_tokens = sum(map(len, tokenizer.encode_documents(documents)))
    return {"vocab_size": tokenizer.vocab_size, "n_tokens": n_tokens}, learn


def encode(*, texts, tokenizer_json, pattern):
    """Load a tokenizer and encode every text."""
    documents = json.loads(Path(texts).read_text())

    def encode_all():
        return Tokenizer.load(tokenizer_json).encode_documents(documents)

    return fingerprint(encode_all()), encode_all


def load_model(sizes, mode, parameters) -> GPT:
    """Return a model. mode: "numpy", or a dtype. parameters: a file of float32."""
    backend, dtype = ("reference", "float32") if mode == "numpy" else ("kernels", mode)
    network = GPT(ModelConfig(**sizes), dtype=dtype, backend=backend)
    network.params.flat[:] = np.memmap(parameters, np.float32, "r")
    return network


if __name__ == "__main__":
    serve({"train": train, "probe": probe, "generate": generate, "train_bpe": train_bpe, "encode": encode})
