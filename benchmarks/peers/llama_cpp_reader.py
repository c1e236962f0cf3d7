"""Reads GGUF files: `python -m benchmarks.peers.llama_cpp_reader`.

Imports only llama-cpp-python and NumPy.
"""

from itertools import islice

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from benchmarks.peers.serving import serve


def read(*, path, tokens, texts, chat, n_prompt, n_tokens):
    """Return what llama.cpp computes from a GGUF file.

    tokens: rows of ids; their logits are computed. texts: to be tokenized. chat: roles
    and contents. The first n_prompt tokens of the first row are continued by the
    n_tokens likeliest ones. Keys and values are kept in float32, not in float16.
    """
    f32 = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(path, n_ctx=0, logits_all=True, type_k=f32, type_v=f32, verbose=False)
    likeliest = list(islice(model.generate(tokens[0][:n_prompt], temp=0.0), n_tokens))
    render = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], eos_token="", bos_token="")
    prompt = render(messages=[{"role": role, "content": content} for role, content in chat]).prompt
    facts = {
        "version": llama_cpp.__version__,
        "logits": [logits_of(model, row).tolist() for row in tokens],
        "ids": [model.tokenize(text.encode()) for text in texts],  # with a first token, if the file asks for one
        "chat": model.tokenize(prompt.encode(), special=True),
        "stop": [model.token_eos(), llama_cpp.llama_vocab_eot(model._model.vocab)],
        "greedy": likeliest,
        "text": model.detokenize(likeliest, special=True).decode(errors="replace"),
    }
    return facts, lambda: None


def logits_of(model: llama_cpp.Llama, row: list[int]) -> np.ndarray:
    """Return the logits at each position of a row, (T, V)."""
    model.reset()
    model.eval(row)
    return model.scores[: len(row)]


if __name__ == "__main__":
    serve({"read": read})
