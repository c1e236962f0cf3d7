"""Policy and critic of actor-critic reinforcement learning.

The two networks have one flat buffer of parameters, `policy.*` and `critic.*`. So one
optimiser, one clipping of the joint gradient and one checkpoint serve both, and neither
network is saved without the other.
"""

from typing import Literal

from npllm.errors import ConfigError
from npllm.model.config import ModelConfig
from npllm.model.lora import Workspace, new_workspace
from npllm.model.parameters import Parameters, initialise, shapes_of_parts, within
from npllm.model.transformer import GPT, Storage


class ActorCritic:
    """Two networks, `policy` and `critic`, that are trained as one (`Trainable`).

    The critic has one output: the value of the state after each token. With LoRA both
    networks have factors, and they share the frozen weights and the workspace. Raises
    ConfigError where that is not so.
    """

    def __init__(
        self,
        policy_config: ModelConfig,
        critic_config: ModelConfig,
        *,
        seed: int = 0,
        dtype: str = "float32",
        backend: Literal["kernels", "reference"] = "kernels",
        frozen: Parameters | None = None,
        workspace: Workspace | None = None,
    ):
        if critic_config.n_outputs != 1:
            raise ConfigError(f"The critic has {critic_config.n_outputs} outputs; give it one.")
        if bool(policy_config.lora_rank) != bool(critic_config.lora_rank):
            raise ConfigError(
                "Only one of policy and critic has LoRA; train the reward model as the policy was trained."
            )
        if policy_config.lora_rank and frozen is None:
            raise ConfigError("Policy and critic with LoRA have no frozen weights to share; give them as `frozen`.")
        self.config, self.seed, self.dtype_name, self.frozen = policy_config, seed, dtype, frozen
        shapes = shapes_of_parts({"policy": policy_config, "critic": critic_config})
        numpy_dtype = "float32" if dtype == "bf16" else dtype
        self.params, self.grads = Parameters(shapes, numpy_dtype), Parameters(shapes, numpy_dtype)
        if policy_config.lora_rank and workspace is None:
            workspace = new_workspace(policy_config, numpy_dtype)

        def part(name: str, config: ModelConfig) -> GPT:
            arrays = within(self.params, name), within(self.grads, name)
            initialise(arrays[0], config, seed)
            return GPT(config, seed=seed, dtype=dtype, backend=backend, storage=Storage(*arrays, frozen, workspace))

        self.policy, self.critic = part("policy", policy_config), part("critic", critic_config)
        self.dtype, self.ops = self.policy.dtype, self.policy.ops

    def parts(self) -> dict[str, GPT]:
        """Return the two networks by name."""
        return {"policy": self.policy, "critic": self.critic}
