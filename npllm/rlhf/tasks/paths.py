"""Shortest paths: a model that has seen random walks through a graph learns to walk straight to the goal.

A directed graph of 21 nodes, named a to u, with every edge there with probability 0.1. A prompt is the node to start
from, a response the nodes to go to, one letter each; the goal is a. The gold reward is 1 for a shortest path, falls to
0 for the longest one allowed, and is 0 for a walk that does not arrive or uses an edge that does not exist.

The idea is that of CarperAI's trlx, "randomwalks".
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

N_NODES, EDGE_PROBABILITY, LONGEST_WALK, GRAPH_SEED = 21, 0.1, 10, 4
NODES = string.ascii_lowercase[:N_NODES]
GOAL = 0


def random_graph(seed: int) -> np.ndarray:
    """(n, n) bool, edges from row to column; every node can reach the goal, and none leads to itself."""
    rng = np.random.default_rng(seed)
    while True:
        edges = rng.random((N_NODES, N_NODES)) < EDGE_PROBABILITY
        np.fill_diagonal(edges, False)
        if np.all(shortest_lengths(edges) < LONGEST_WALK):
            return edges


def shortest_lengths(edges: np.ndarray) -> np.ndarray:
    """Nodes on the shortest path from each node to the goal, both ends counted; (n,), LONGEST_WALK + 1 = none."""
    lengths = np.full(len(edges), LONGEST_WALK + 1)
    lengths[GOAL] = 1
    for _ in range(LONGEST_WALK):
        through = np.where(edges, lengths[None, :], LONGEST_WALK + 1).min(axis=1) + 1
        lengths = np.minimum(lengths, through)
    return lengths


class Paths(Task):
    """See above."""

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
        """From a random node along random edges, to the goal or to the longest length."""
        nodes = [int(rng.integers(1, N_NODES))]
        while nodes[-1] != GOAL and len(nodes) < LONGEST_WALK:
            nodes.append(int(rng.choice(np.flatnonzero(self.edges[nodes[-1]]))))
        return "".join(NODES[node] for node in nodes)

    def corpus(self) -> str:
        """Random walks, one a line."""
        rng = np.random.default_rng(1)
        return "".join(self.walk(rng) + "\n" for _ in range(4000))

    def demonstrations(self) -> list[Demonstration]:
        """Random walks again: the model learns where edges are, and not which way is short."""
        rng = np.random.default_rng(2)
        walks = [self.walk(rng) for _ in range(2000)]
        return [Demonstration(walk[0], walk[1:]) for walk in walks]

    def prompts(self) -> list[str]:
        """Every node but the goal."""
        return list(NODES[1:])

    def gold(self, response: Response) -> float:
        """1 for a shortest path, 0 for none."""
        walk = response.prompt + response.text
        if not response.stopped or set(walk) - set(NODES) or len(walk) > LONGEST_WALK:
            return 0.0
        nodes = [NODES.index(letter) for letter in walk]
        if nodes[-1] != GOAL or not all(self.edges[a, b] for a, b in zip(nodes, nodes[1:], strict=False)):
            return 0.0
        return float((LONGEST_WALK - len(nodes)) / (LONGEST_WALK - self.shortest[nodes[0]]))
