"""Runs EleutherAI's harness: `python -m benchmarks.peers.lm_eval_worker`.

Imports lm_eval, transformers and npllm itself, whose model object the harness calls.
"""

from importlib.metadata import version

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import npllm
from benchmarks.peers.serving import serve
from npllm.interop.lm_eval import NpllmLM

ROWS = 4


def ask(*, run, folder, tasks, group, pairs, texts, prompts):
    """Return what the harness finds with our model object and, for the same model in a
    folder of Hugging Face, with its own.

    run: of the model. folder: the same model for transformers. tasks: folder with a
    group of tasks. pairs: contexts and continuations. texts: whole texts. prompts:
    contexts and generation_kwargs.
    """
    models = {
        "npllm": NpllmLM(*npllm.load(run), batch_size=ROWS),
        "transformers": HFLM(folder, device="cpu", dtype="float32", batch_size=ROWS),
    }
    manager = TaskManager(include_path=tasks, include_defaults=False)
    facts = {"version": version("lm_eval")}
    for name, model in models.items():
        found = lm_eval.simple_evaluate(
            model, tasks=[group], task_manager=manager, bootstrap_iters=0, log_samples=False
        )
        facts[name] = {
            "accuracy": {task: figures["acc,none"] for task, figures in found["results"].items()},
            "likelihoods": model.loglikelihood(requests("loglikelihood", pairs)),
            "whole": model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts])),
            "texts": model.generate_until(requests("generate_until", prompts)),
        }
    return facts, lambda: None


def requests(kind: str, arguments: list) -> list[Instance]:
    """Return the harness's form of requests."""
    return [Instance(kind, {}, tuple(each), number) for number, each in enumerate(arguments)]


if __name__ == "__main__":
    serve({"ask": ask})
