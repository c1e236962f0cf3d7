"""Minimal pairs as tasks of EleutherAI's harness, `lm_eval`.

    minimal_pairs.yaml             the group of all tasks
    minimal_pairs_bracket.yaml     one task for each phenomenon
    minimal_pairs_bracket.jsonl    its pairs, one a line
    ...

The tasks are of the type multiple_choice. The context is empty, and the two functions
are the choices, so that `acc` is what `npllm evaluate --task minimal-pairs` prints. The
right function is the first choice and the second one in turn.

lm_eval finds data by absolute paths or from the folder that it is started in. So the
paths are absolute, and a folder that was moved has to be written again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from npllm.data.minimal_pairs import PHENOMENA, MinimalPair
from npllm.errors import ConfigError
from npllm.files.atomic import write_atomically
from npllm.files.folders import make_folder
from npllm.files.user_path import user_path

GROUP = "minimal_pairs"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
WHOLE_GROUP = """\
group: {name}
task:
{tasks}
aggregate_metric_list:
  - metric: acc
    aggregation: mean
    weight_by_size: true
metadata:
  version: 1.0
"""


def write_tasks(pairs: Sequence[MinimalPair], folder: Path) -> None:
    """Write the pairs as tasks into a folder, which must be empty or not exist.

    Raises ConfigError for a folder that is not empty, and ResourceError where the disk
    is full.
    """
    folder = user_path(folder)
    make_folder(folder)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder.")
    names = []
    for phenomenon in PHENOMENA:
        documents = enumerate(pair for pair in pairs if pair.phenomenon == phenomenon)
        lines = [f"{json.dumps(document_of(pair, number))}\n" for number, pair in documents]
        if not lines:
            continue
        names.append(name := f"{GROUP}_{phenomenon.replace(' ', '_')}")
        data = folder / f"{name}.jsonl"
        write_atomically(data, "".join(lines).encode())
        task = TASK.format(name=name, path=json.dumps(str(data.absolute())))
        write_atomically(folder / f"{name}.yaml", task.encode())
    tasks = "\n".join(f"  - {name}" for name in names)
    write_atomically(folder / f"{GROUP}.yaml", WHOLE_GROUP.format(name=GROUP, tasks=tasks).encode())


def document_of(pair: MinimalPair, number: int) -> dict[str, object]:
    """One line of the data: both functions, and the index of the right one."""
    label = number % 2
    choices = [pair.right, pair.wrong] if label == 0 else [pair.wrong, pair.right]
    return {"choices": choices, "label": label, "old": pair.old, "new": pair.new}
