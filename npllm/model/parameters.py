"""All parameters of a model as named views into one flat buffer.

With one buffer the optimiser, clipping, hashing and checkpoints are each a single pass
over flat memory; the views keep the model readable. Matrices come first and vectors
(norm weights, biases) last, so that "weight decay on matrices only" cuts the buffer at
one place. Every view starts on a 64-byte boundary. The gaps between views are zero and
stay zero.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod, sqrt

import numpy as np

from npllm.memory.aligned import ALIGNMENT, aligned_zeros
from npllm.model.config import ModelConfig
from npllm.reference.random import random_normal
from npllm.reference.random_streams import INITIAL_VALUES
from npllm.reference.weights import initial_std, weight_shapes

WHOLE = "model"  # the only part of a model that is one network
TOKEN_TABLES = ("token_embedding", "lm_head")  # (V, C): a row for each token
DRAWS = 1 << 18  # at once: with their random words they take many times the parameters' memory


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every trained parameter, in the order of the forward."""
    shapes = weight_shapes(config)
    if config.lora_rank:
        shapes = lora_shapes(shapes, config)
    if config.n_outputs:
        shapes |= {"readout.weight": (config.n_embd, config.n_outputs), "readout.bias": (config.n_outputs,)}
    return shapes


def name_in_model(part: str, name: str) -> str:
    """Return a parameter's name in the whole model, as critic.final_norm.weight."""
    return name if part == WHOLE else f"{part}.{name}"


def shapes_of_parts(configs: Mapping[str, ModelConfig]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every trained parameter of a model with these parts."""
    return {
        name_in_model(part, name): shape
        for part, config in configs.items()
        for name, shape in parameter_shapes(config).items()
    }


def lora_shapes(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of what LoRA trains of the weights `shapes`.

    That is two factors for every matrix of the blocks, (in, r) and (r, out), and the
    rows of new tokens in every matrix that has a row for each token, (new, C).
    """
    rank, new = config.lora_rank, config.lora_new_tokens
    trained: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.startswith("blocks.") and len(shape) == 2:
            trained |= {f"{name}.lora_a": (shape[0], rank), f"{name}.lora_b": (rank, shape[1])}
        elif name in TOKEN_TABLES and new:
            trained[f"{name}.new_rows"] = (new, shape[1])
    return trained


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters of a model, without building it.

    All blocks have the same shapes, so models of one and of two blocks suffice.
    """
    one, two = (sum(map(prod, parameter_shapes(replace(config, n_layer=n_layer)).values())) for n_layer in (1, 2))
    return one + (config.n_layer - 1) * (two - one)


class Parameters(Mapping[str, np.ndarray]):
    """Arrays by name, all of them views into `flat`, (n,) of one dtype.

    Initially all are zero.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype):
        self.dtype = np.dtype(dtype)
        self.shapes = dict(shapes)
        step = ALIGNMENT // self.dtype.itemsize
        self.offsets: dict[str, int] = {}  # in elements of `flat`
        end = 0
        for is_vector in (False, True):
            for name, shape in self.shapes.items():
                if (len(shape) == 1) == is_vector:
                    self.offsets[name] = end
                    end += -(-prod(shape) // step) * step
            if not is_vector:
                self.n_matrix_elements = end  # flat[:n_matrix_elements] are the matrices
        self.flat = aligned_zeros(end * self.dtype.itemsize).view(self.dtype)
        self.cuts = [0, end]  # where the pieces of the ranks begin, and the end; an optimiser sets it
        self._spares: list[np.ndarray] = []
        self._views = {
            name: self.flat[self.offsets[name] : self.offsets[name] + prod(shape)].reshape(shape)
            for name, shape in self.shapes.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def spare(self, number: int) -> np.ndarray:
        """Return another buffer like `flat`, for sums; it is made at its first use."""
        while len(self._spares) <= number:
            self._spares.append(aligned_zeros(self.flat.nbytes).view(self.dtype))
        return self._spares[number]

    def spans(self) -> dict[str, slice]:
        """Return parts of `flat` that cover it, by name, in their order.

        The matrices of a block are one, such as blocks.0; so are all vectors, as
        `vectors`. Each other matrix is one under its own name.
        """
        starts: dict[str, int] = {}
        for name in sorted(self.offsets, key=self.offsets.get):
            block = re.match(r"(.*\bblocks\.\d+)\.", name)
            is_vector = self.offsets[name] >= self.n_matrix_elements
            starts.setdefault("vectors" if is_vector else block[1] if block else name, self.offsets[name])
        ends = [*list(starts.values())[1:], len(self.flat)]
        return {name: slice(start, end) for (name, start), end in zip(starts.items(), ends, strict=True)}

    @property
    def count(self) -> int:
        """The number of parameters, without the gaps between the views."""
        return sum(prod(shape) for shape in self.shapes.values())


def nobody(span: str) -> None:
    """Take no notice that a span of the gradient is complete."""


def within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays named `prefix.*`, under the rest of their names."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(prefix + ".")}


def initialise(params: Parameters, config: ModelConfig, seed: int) -> None:
    """Set GPT-2's initial values: norm weights 1, biases 0, matrices N(0, std).

    `initial_std` gives the std of most matrices. The matrix of the second head has the
    std 1 / sqrt(C + 1) (Ziegler et al., "Fine-tuning language models from human
    preferences", 2019). Of LoRA's factors A is N(0, 1 / sqrt(in)) and B is zero, so
    that their product is zero at first.
    """
    for index, (name, array) in enumerate(params.items()):
        if array.ndim == 2:
            std = _initial_std(name, array, config)
            flat = array.reshape(-1)
            for first in range(0, len(flat), DRAWS):
                part = flat[first : first + DRAWS]
                part[:] = std * random_normal(len(part), seed=seed, stream=INITIAL_VALUES[index], first=first)
        else:
            array[:] = 1.0 if name.endswith("weight") else 0.0


def _initial_std(name: str, array: np.ndarray, config: ModelConfig) -> float:
    if name == "readout.weight":
        return 1.0 / sqrt(config.n_embd + 1)
    if name.endswith("lora_a"):
        return 1.0 / sqrt(len(array))
    if name.endswith("lora_b"):
        return 0.0
    return initial_std(name, config.n_layer)
