"""Reinforcement learning from human feedback: reward model, rollouts, PPO and its
relatives, tasks."""
