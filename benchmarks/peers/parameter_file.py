"""The same parameters for all contenders: npllm's, in a file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np

from npllm.model import ModelConfig
from npllm.model.parameters import Parameters, initialise, parameter_shapes


@contextmanager
def shared_model(config: ModelConfig) -> Iterator[dict[str, Any]]:
    """Yield the settings of a GPT-2 model for every worker.

    They are its sizes, a file of parameters, the offset and shape of each parameter in
    it, and the number of threads. The file exists as long as the context, in a folder
    that may hold more files.
    """
    parameters = Parameters(parameter_shapes(config), "float32")
    initialise(parameters, config, seed=0)
    make_everything_matter(parameters)
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "parameters")
        parameters.flat.tofile(path)
        yield {
            "model": {size: getattr(config, size) for size in sizes},
            "parameters": str(path),
            "layout": {name: (parameters.offsets[name], shape) for name, shape in parameters.shapes.items()},
            "threads": numba.config.NUMBA_NUM_THREADS,
        }


def make_everything_matter(parameters: Parameters) -> None:
    """Change the initial values, which hide mistakes, to values like a trained model's.

    Initially every bias is 0 and attention is almost uniform, so the loss would hardly
    show a difference between two models there.
    """
    rng = np.random.default_rng(0)
    for array in parameters.values():
        if array.ndim == 1:
            array += 0.1 * rng.normal(size=array.shape)
        else:
            array *= 4.0
