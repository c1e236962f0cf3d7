"""Several processes that train one model: ranks, and the sums over them.

tree.py         the order in which the parts of a batch are added
pieces.py       how a flat array is divided between ranks
reduction.py    the sum of a gradient, while the rest of it is still computed
ranks.py        the collective operations, of a process that is alone
mpi_ranks.py    the same of a rank of several, on MPI
launch.py       whether mpiexec started this process, and what may be wrong with it
costs.py        what the sums over ranks cost, by a model
team.py         whether this process works alone now, or with the other ranks
"""

from npllm.distributed.launch import is_launched, joined, promised_rank, world
from npllm.distributed.ranks import ALONE, EndedElsewhere, Ranks
from npllm.distributed.team import share_out, team, together

__all__ = [
    "ALONE",
    "EndedElsewhere",
    "Ranks",
    "is_launched",
    "joined",
    "promised_rank",
    "share_out",
    "team",
    "together",
    "world",
]
