"""npllm with planted faults: FAULTS ARGUMENTS...

FAULTS is a JSON object: names of the functions below, and their arguments. A fault
comes after an update or with certain data, so it does not depend on how busy the
machine is.
"""

import json
import os
import sys

from npllm.cli import main
from npllm.distributed import promised_rank
from npllm.model import GPT
from npllm.optim import Optimizer
from npllm.training import machine

SHARP = 2  # the token "#" in the text of the tests: a character's id is its place in order
FOLD = 50


def signal(rank: int, update: int, number: int) -> None:
    """A rank gets a signal when it has made an update."""
    step = Optimizer.step

    def step_and_signal(self, **options):
        norm = step(self, **options)
        if self.updates == update and promised_rank() == rank:
            os.kill(os.getpid(), number)
        return norm

    Optimizer.step = step_and_signal


def poison() -> None:
    """A micro-batch that has a "#" counts 50 times."""
    loss_and_grad = GPT.loss_and_grad

    def fifty_fold(self, tokens, targets, *, n_targets=None, **options):
        if n_targets is not None and (tokens == SHARP).any():
            n_targets //= FOLD
        return loss_and_grad(self, tokens, targets, n_targets=n_targets, **options)

    GPT.loss_and_grad = fifty_fold


def bf16() -> None:
    """Training in bf16 is allowed on any processor. One that has no products of
    bfloat16 computes the same sums in another way."""
    machine.HAS_BFLOAT16_DOT = True


if __name__ == "__main__":
    for name, arguments in json.loads(sys.argv[1]).items():
        globals()[name](*arguments)
    sys.exit(main(sys.argv[2:]))
