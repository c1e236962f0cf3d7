"""Reads exported folders: `python -m benchmarks.peers.transformers_reader`.

Imports only PyTorch, transformers and PEFT.
"""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.serving import serve


@torch.inference_mode()
def read(*, folder, again, **questions):
    """Return what transformers computes from a folder.

    again: folder that model and tokenizer are saved into.
    """
    model, tokenizer = loaded(folder)
    facts = answers(model, tokenizer, **questions)
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    return facts | {"version": transformers.__version__}, lambda: None


@torch.inference_mode()
def read_adapter(*, folder, base, **questions):
    """Return what PEFT computes from the adapter in a folder and its base."""
    import peft

    model, tokenizer = loaded(base)
    facts = answers(peft.PeftModel.from_pretrained(model, folder).eval(), tokenizer, **questions)
    return facts | {"version": peft.__version__}, lambda: None


def loaded(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return model.float().eval(), tokenizer


def answers(model, tokenizer, *, tokens, texts, chat, n_prompt, n_tokens):
    """Return what a model and its tokenizer compute.

    tokens: rows of ids; their logits are computed. texts: to be tokenized. chat: roles
    and contents. The first n_prompt tokens of the first row are continued by the
    n_tokens likeliest ones.
    """
    start = torch.tensor([tokens[0][:n_prompt]])
    stop = [tokenizer.eos_token_id, model.generation_config.eos_token_id]
    greedy = {"do_sample": False, "max_new_tokens": n_tokens, "eos_token_id": None, "pad_token_id": 0}
    greedy |= {"attention_mask": torch.ones_like(start)}
    likeliest = model.generate(input_ids=start, **greedy)[0, n_prompt:].tolist()
    messages = [{"role": role, "content": content} for role, content in chat]
    return {
        "logits": model(input_ids=torch.tensor(tokens)).logits.tolist(),
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "chat": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        "stop": stop,
        "greedy": likeliest,
        "text": tokenizer.decode(likeliest),
    }


if __name__ == "__main__":
    serve({"read": read, "read_adapter": read_adapter})
