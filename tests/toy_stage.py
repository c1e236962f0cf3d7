"""A minimal stage: a tiny model learns one sentence by heart."""

import numpy as np

from npllm.data.records import Prompt, read_prompts
from npllm.model import GPT, ModelConfig
from npllm.optim import build_optimizer
from npllm.runs.inputs import Copies, checked_records
from npllm.runs.summary import write_summary
from npllm.tokenizer import byte_tokenizer
from npllm.training.config import LoopConfig
from npllm.training.job import Job
from npllm.training.loop import BatchResult
from npllm.training.memory import Work
from npllm.training.stage import Stage
from npllm.training.state import LoopState


class Toy(Stage[LoopConfig]):
    name, config_type, records = "toy", LoopConfig, ("train",)

    def inputs(self, config, console, *, text: str = "to be or not to be"):
        """The sentence.

        Args:
            text: what is learnt
        """
        return Copies(config, byte_tokenizer(), {}, {"train": [Prompt(text)]})

    def job(self, run, config):
        row = np.array([run.load_tokenizer().encode(read_prompts(checked_records(run, "train"))[0])])
        model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=64, vocab_size=257, dropout=0.1))
        learn = lambda model, ids, step: BatchResult(model.loss_and_grad(row[:, :-1], row[:, 1:], step=step), row.size)  # noqa: E731
        work = Work(rows=1, width=row.size, read_rows=1)
        state = LoopState(model, build_optimizer(model, config.optim))
        return Job(state=state, gradients=learn, validate=None, work=work, description=f"{row.size} bytes by heart")

    def report(self, run, config, job, console):
        write_summary(run, job.state, {"learnt": True})
        return f"npllm verify {run.path}"


STAGE = Toy()
