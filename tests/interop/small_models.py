"""Small models of the families of Hugging Face, with weights of order one."""

from model.model_cases import GPT_2, LLAMA, QWEN, set_weights_of_order_one

from npllm.model import GPT, ModelConfig
from npllm.tokenizer import byte_tokenizer

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 12}
FAMILIES = {
    "gpt2": GPT_2,
    "gpt2 untied": GPT_2 | {"tie_embeddings": False},
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_embeddings": True, "n_kv_head": 2},
    "llama with biases": LLAMA | {"bias": True, "n_kv_head": None},
    "qwen3": QWEN,
    "gpt2 of other sizes": GPT_2 | {"n_inner": 20, "norm_eps": 1e-6},
}


def small_model(seed=1, tokenizer=None, **fields):
    vocab_size = (tokenizer or byte_tokenizer()).vocab_size
    model = GPT(ModelConfig(**(SIZES | fields), vocab_size=vocab_size))
    set_weights_of_order_one(model, seed)
    return model
