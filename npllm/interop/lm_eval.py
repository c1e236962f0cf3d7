"""A model for EleutherAI's harness. Importing this module needs `lm_eval` 0.4.

In Python, with a model in memory or of a run:

    import lm_eval, npllm
    from npllm.interop.lm_eval import NpllmLM
    lm = NpllmLM(*npllm.load("runs/default"))
    lm_eval.simple_evaluate(model=lm, tasks=["wikitext"])

On the command line, which is the harness's own and then knows the model `npllm`:

    python -m npllm.interop.lm_eval run --model npllm --model_args run=runs/default \
        --tasks minimal_pairs --include_path FOLDER
"""

from collections.abc import Sequence
from typing import Any

import npllm
from npllm.errors import ConfigError
from npllm.generation.likelihood import ROWS_AT_ONCE
from npllm.interop.harness import Answers
from npllm.model import GPT
from npllm.tokenizer import Tokenizer

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ConfigError("npllm.interop.lm_eval needs lm_eval, which is not installed; pip install lm_eval.") from error

Arguments = dict[str, Any]


@register_model("npllm")
class NpllmLM(LM):
    """A model as the harness calls it.

    batch_size: texts that go through the model at once; it does not change the
    results. seed: of generated texts that are sampled.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, batch_size: int = ROWS_AT_ONCE, seed: int = 0):
        super().__init__()
        self.answers = Answers(model, tokenizer, rows=batch_size, seed=seed)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Arguments, additional_config: Arguments | None = None) -> "NpllmLM":
        """Return the model of a run, for `model_args` such as run=RUN,seed=1.

        run: a folder or a checkpoint. batch_size: a number, or auto. The harness also
        gives max_batch_size and device, which do not count here.
        """
        given = dict(arg_dict) | {k: v for k, v in (additional_config or {}).items() if v is not None}
        given = {name: value for name, value in given.items() if name not in ("max_batch_size", "device")}
        if "run" not in given:
            raise ConfigError("model_args names no run; write run=RUN.")
        run, batch_size = given.pop("run"), str(given.pop("batch_size", "auto"))
        rows = ROWS_AT_ONCE if batch_size.startswith("auto") else int(batch_size)
        if unknown := sorted(given.keys() - {"seed"}):
            raise ConfigError(f"model_args has {unknown[0]!r:.80}; it may have run, batch_size and seed.")
        return cls(*npllm.load(str(run)), batch_size=rows, **given)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Arguments | None = None) -> "NpllmLM":
        """Return the model of a run, as `create_from_arg_obj` does."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, whether it is the likeliest) of each
        continuation."""
        return [tuple(each) for each in self.answers.likelihoods([request.args for request in requests])]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Return the log-probability of each text, in nats."""
        return self.answers.whole_likelihoods([text for (text,) in (request.args for request in requests)])

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the text that follows each context."""
        return [self.answers.continuation(*request.args, number) for number, request in enumerate(requests)]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
