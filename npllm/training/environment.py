"""Environment variables of the libraries below, checked before anything is prepared.

Numba looks at some of its variables at the first parallel kernel, and Matplotlib at its
own when the first plot is drawn. A bad value would end a run after its preparation, or
after its training.
"""

import importlib
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

from npllm.errors import ConfigError

MOST_THREADS = 1024  # or, on a larger machine, its cores
ASK_LLVM = """
import sys, llvmlite.binding as llvm
try:
    llvm.initialize_native_target()
except RuntimeError:  # newer versions need no initialisation
    pass
llvm.Target.from_default_triple().create_target_machine(cpu=sys.argv[1])
"""
HARMLESS = {"NUMBA_CACHE_DIR"}  # a folder that cannot be used is a miss (kernels/compiled_cache.py)


def check_environment() -> None:
    """Raise ConfigError for a variable that Numba or Matplotlib would fail on.

    The libraries are imported only where such a variable is set.
    """
    if any(name.startswith("NUMBA_") for name in os.environ.keys() - HARMLESS):
        _check_numba()
    if os.environ.get("MPLBACKEND") and find_spec("matplotlib"):
        _check_matplotlib(os.environ["MPLBACKEND"])


def _check_numba() -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Environment variable", RuntimeWarning)
            from numba import config, get_num_threads
    except RuntimeWarning as warning:  # its first line is a sentence, the others a traceback
        raise ConfigError(f"{str(warning).splitlines()[0].rstrip('.')}; correct or unset it.") from warning
    except ValueError as error:
        raise ConfigError(_refusal("NUMBA_NUM_THREADS", error)) from error
    if (threads := config.NUMBA_NUM_THREADS) > max(MOST_THREADS, os.cpu_count() or 1):
        raise ConfigError(
            f"The environment variable NUMBA_NUM_THREADS is '{threads}', more threads than a process can start; "
            "correct or unset it."
        )
    if config.DISABLE_JIT:  # nothing is compiled, and nothing runs in parallel
        return
    if any(feature[0] not in "+-" for feature in (config.CPU_FEATURES or "").split(",") if feature):  # LLVM would abort
        raise ConfigError(
            f"The environment variable NUMBA_CPU_FEATURES is {config.CPU_FEATURES!r}, in which not every name begins "
            "with + or -; correct or unset it."
        )
    if config.CPU_NAME and _is_unknown_to_llvm(config.CPU_NAME):
        raise ConfigError(
            f"The environment variable NUMBA_CPU_NAME is {config.CPU_NAME!r}, which LLVM does not know; correct or "
            "unset it."
        )
    importlib.import_module("npllm.kernels.jit")  # which sets how threads wait, before there are any
    try:
        get_num_threads()  # loads the threading layer
    except ValueError as error:
        priority = "_PRIORITY" if "PRIORITY" in str(error) else ""
        raise ConfigError(_refusal(f"NUMBA_THREADING_LAYER{priority}", error)) from error


def _is_unknown_to_llvm(processor: str) -> bool:
    """Whether LLVM complains about the name of a processor. It only prints, so it is
    asked in a process of its own."""
    process = subprocess.run([sys.executable, "-c", ASK_LLVM, processor], capture_output=True, text=True)
    return process.returncode != 0 or "not a recognized processor" in process.stderr


def _refusal(name: str, error: ValueError) -> str:
    reason = " ".join(str(error).split()).rstrip(".")
    return f"The environment variable {name} is {os.environ.get(name)!r}: {reason}; correct or unset it."


def _check_matplotlib(backend: str) -> None:
    try:
        importlib.import_module("matplotlib")
    except ValueError as error:
        raise ConfigError(
            f"The environment variable MPLBACKEND is {backend!r}, which Matplotlib does not know; unset it, or set it "
            "to agg."
        ) from error
