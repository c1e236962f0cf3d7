"""Tasks for `npllm rlhf`: prompts, demonstrations, and a gold reward.

The gold reward says how good a response really is.
"""

from npllm.rlhf.tasks.task import Recipe, Response, Task, load_task

__all__ = ["Recipe", "Response", "Task", "load_task"]
