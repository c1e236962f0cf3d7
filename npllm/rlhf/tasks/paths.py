"""The task `paths`: find a shortest path to the goal in a directed graph.

The model first learns from random paths, and then to take shortest ones. The graph has
21 nodes, a to u, and each possible edge exists with probability 0.1. The goal is the
node a. A prompt is the letter of the first node, a response the letters of the
following nodes.

The gold reward is 1 for a shortest path, and falls linearly to 0 for a path of
LONGEST_WALK nodes. It is 0 for a path that does not end at the goal, is longer than
that, or uses an edge that does not exist.

Source of the idea: CarperAI's trlx, "randomwalks".
"""

import string

import numpy as np

from npllm.data.records import Demonstration
from npllm.finetuning.sft import SFTConfig
from npllm.model import Architecture
from npllm.optim import BatchConfig, OptimConfig
from npllm.rlhf.dpo import DPOConfig
from npllm.rlhf.ppo_run import PPOConfig
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.reward import RewardConfig, RewardSettings
from npllm.rlhf.tasks.task import Recipe, Response, Task
from npllm.training.config import DataConfig, RunConfig, TrainConfig

N_NODES, EDGE_PROBABILITY, LONGEST_WALK, GRAPH_SEED = 21, 0.1, 10, 4  # a path's length counts nodes
NODES = string.ascii_lowercase[:N_NODES]
GOAL = 0


def random_graph(seed: int) -> np.ndarray:
    """Return the adjacency matrix of a random graph, (n, n) bool.

    Edges go from row to column. There is no edge from a node to itself. Every node
    reaches the goal on a path of fewer than LONGEST_WALK nodes; graphs are drawn until
    this holds.
    """
    rng = np.random.default_rng(seed)
    while True:
        edges = rng.random((N_NODES, N_NODES)) < EDGE_PROBABILITY
        np.fill_diagonal(edges, False)
        if np.all(shortest_lengths(edges) < LONGEST_WALK):
            return edges


def shortest_lengths(edges: np.ndarray) -> np.ndarray:
    """Return the number of nodes on the shortest path from each node to the goal, (n,).

    Both ends count. LONGEST_WALK + 1 means that there is no path of at most
    LONGEST_WALK nodes. edges: (n, n) bool, from row to column.
    """
    lengths = np.full(len(edges), LONGEST_WALK + 1)
    lengths[GOAL] = 1
    for _ in range(LONGEST_WALK):
        through = np.where(edges, lengths[None, :], LONGEST_WALK + 1).min(axis=1) + 1
        lengths = np.minimum(lengths, through)
    return lengths


class Paths(Task):
    """Finding shortest paths to the goal in a random graph."""

    name = "paths"
    recipe = Recipe(
        pretrain=RunConfig(
            data=DataConfig(source=("walks.txt",), tokenizer="char"),
            model=Architecture(n_layer=2, n_head=4, n_embd=64, block_size=16),
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, warmup_steps=20),
            batch=BatchConfig(size=64, micro_size=64),
            train=TrainConfig(steps=300, eval_every=100, checkpoint_every=300),
        ),
        sft=SFTConfig(
            optim=OptimConfig(lr=1e-3, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01),
            batch=BatchConfig(size=64, micro_size=64),
            train=TrainConfig(steps=200, eval_every=100, checkpoint_every=200),
        ),
        reward=RewardConfig(
            reward=RewardSettings(epochs=4),
            optim=OptimConfig(lr=1e-3, min_lr=0.0, warmup_steps=20, decay="linear", weight_decay=0.01),
            batch=BatchConfig(size=64, micro_size=64),
            train=TrainConfig(eval_every=100, checkpoint_every=1000),
        ),
        ppo=PPOConfig(ppo=PPOSettings(rollout_size=128, max_tokens=LONGEST_WALK, kl_coef=0.1, kl_target=0.0)),
        rloo=PPOConfig(
            ppo=PPOSettings(method="rloo", rollout_size=128, max_tokens=LONGEST_WALK, kl_coef=0.1, kl_target=0.0)
        ),
        grpo=PPOConfig(
            ppo=PPOSettings(method="grpo", rollout_size=128, max_tokens=LONGEST_WALK, kl_coef=0.1, kl_target=0.0)
        ),
        dpo=DPOConfig(train=TrainConfig(eval_every=100, checkpoint_every=1000)),
        responses_per_prompt=800,
        n_pairs=8000,
        preference_temperature=1.5,
    )

    def __init__(self):
        self.edges = random_graph(GRAPH_SEED)
        self.shortest = shortest_lengths(self.edges)

    def walk(self, rng: np.random.Generator) -> str:
        """Return a random path, one letter for each node.

        It starts at a random node other than the goal and follows random edges, until
        it reaches the goal or has LONGEST_WALK nodes.
        """
        nodes = [int(rng.integers(1, N_NODES))]
        while nodes[-1] != GOAL and len(nodes) < LONGEST_WALK:
            nodes.append(int(rng.choice(np.flatnonzero(self.edges[nodes[-1]]))))
        return "".join(NODES[node] for node in nodes)

    def corpus(self) -> str:
        """Return 4,000 random paths, one on each line."""
        rng = np.random.default_rng(1)
        return "".join(self.walk(rng) + "\n" for _ in range(4000))

    def demonstrations(self) -> list[Demonstration]:
        """Return 2,000 other random paths; the first node is the prompt.

        The model learns from them where edges are, but not which path is short.
        """
        rng = np.random.default_rng(2)
        walks = [self.walk(rng) for _ in range(2000)]
        return [Demonstration(walk[0], walk[1:]) for walk in walks]

    def prompts(self) -> list[str]:
        """Return every node except the goal."""
        return list(NODES[1:])

    def gold(self, response: Response) -> float:
        """Return the gold reward of a path, from 0.0 to 1.0.

        With n nodes on the path and m on the shortest path from its first node, it is
        (LONGEST_WALK - n) / (LONGEST_WALK - m). It is 0.0 if the letters are not
        a path to the goal of at most LONGEST_WALK nodes, or if the response does not
        end by itself.
        """
        walk = response.prompt + response.text
        if not response.stopped or set(walk) - set(NODES) or len(walk) > LONGEST_WALK:
            return 0.0
        nodes = [NODES.index(letter) for letter in walk]
        if nodes[-1] != GOAL or not all(self.edges[a, b] for a, b in zip(nodes, nodes[1:], strict=False)):
            return 0.0
        return float((LONGEST_WALK - len(nodes)) / (LONGEST_WALK - self.shortest[nodes[0]]))
