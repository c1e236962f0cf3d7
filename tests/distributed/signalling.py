"""npllm, of which one rank sends itself a signal: RANK UPDATE SIGNAL ARGUMENTS...

The signal comes when the rank has made the update, so the moment does not depend on how
busy the machine is.
"""

import os
import sys

from npllm.cli import main
from npllm.distributed import promised_rank
from npllm.optim import Optimizer

rank, update, number, *arguments = sys.argv[1:]
step = Optimizer.step


def step_and_signal(self, **options):
    norm = step(self, **options)
    if self.updates == int(update) and promised_rank() == int(rank):
        os.kill(os.getpid(), int(number))
    return norm


Optimizer.step = step_and_signal
sys.exit(main(arguments))
