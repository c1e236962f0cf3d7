"""Reads exported folders: `python -m benchmarks.peers.transformers_reader`.

Imports only PyTorch and transformers.
"""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.serving import serve


@torch.inference_mode()
def read(*, folder, tokens, texts, chat, n_prompt, n_tokens, again):
    """Return what transformers computes from a folder.

    tokens: rows of ids; their logits are computed. texts: to be tokenized. chat: roles
    and contents. The first n_prompt tokens of the first row are continued by the
    n_tokens likeliest ones. again: folder that model and tokenizer are saved into.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = model.float().eval()
    start = torch.tensor([tokens[0][:n_prompt]])
    stop = [tokenizer.eos_token_id, model.generation_config.eos_token_id]
    greedy = {"do_sample": False, "max_new_tokens": n_tokens, "eos_token_id": None, "pad_token_id": 0}
    likeliest = model.generate(start, attention_mask=torch.ones_like(start), **greedy)[0, n_prompt:].tolist()
    messages = [{"role": role, "content": content} for role, content in chat]
    facts = {
        "version": transformers.__version__,
        "class": type(model).__name__,
        "logits": model(torch.tensor(tokens)).logits.tolist(),
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "chat": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        "stop": stop,
        "greedy": likeliest,
        "text": tokenizer.decode(likeliest),
    }
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    return facts, lambda: None


if __name__ == "__main__":
    serve({"read": read})
