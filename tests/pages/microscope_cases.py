"""Small subjects for the microscope: models with random weights and a line of text."""

import npllm
from npllm.model import GPT, ModelConfig
from npllm.pages.subject import Subject
from npllm.tokenizer import train_char

LINE = "the cat sat\ton <b>"
GPT_2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu"}
LLAMA = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "n_kv_head": 1}
QWEN = LLAMA | {"qk_norm": True, "tie_embeddings": False}
EVERY = {"gpt2": GPT_2, "relu2": GPT_2 | {"mlp": "relu2"}, "llama": LLAMA, "qwen": QWEN}


def small_subject(text: str = LINE, **fields) -> Subject:
    """A subject with AdamW; its tokens are the characters of `text`."""
    tokenizer = train_char([text + LINE])
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 24, "vocab_size": tokenizer.vocab_size}
    model = GPT(ModelConfig(**(sizes | fields)), seed=1)
    optimizer = npllm.AdamW(model, lr=1e-2)
    return Subject(
        "runs/small", "in a test", model, tokenizer, text, tokenizer.encode(text), optimizer, 1e-2, 1.0, rows=2
    )
