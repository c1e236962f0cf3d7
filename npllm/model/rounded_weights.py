"""The weights in bfloat16, for a model of dtype bf16."""

from collections.abc import Iterator, Mapping

import numpy as np

from npllm.model.parameters import Parameters


class RoundedWeights(Mapping[str, np.ndarray]):
    """The parameters by name, with the factors of matrix products in bfloat16.

    `refresh` rounds the current parameters; until then the earlier values stay.
    """

    def __init__(self, params: Parameters, head_name: str):
        self._params = params
        self._rounded: dict[str, np.ndarray] = {}
        for name, array in params.items():
            if name == head_name:
                self._rounded[name] = np.empty(array.shape, np.uint16)
            elif array.ndim == 2 and name.startswith("blocks."):
                self._rounded[name] = np.empty(array.shape[::-1], np.uint16).T  # the layout for one row (`few_rows`)

    def refresh(self) -> None:
        """Round the current values of the parameters."""
        from npllm.kernels.bfloat16 import round_into  # the kernels are imported when a model first needs them
        from npllm.kernels.rounded_transpose import round_transposed

        for name, rounded in self._rounded.items():
            if rounded.flags.c_contiguous:
                round_into(rounded, self._params[name])
            else:
                round_transposed(rounded.T, self._params[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._rounded.get(name, self._params[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)
