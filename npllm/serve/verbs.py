"""The verb `npllm serve`, in the form of `npllm/verbs.py`."""

from collections.abc import Callable
from pathlib import Path

from tyro.conf import Positional

from npllm.output import TextConsole

NEEDED = ("jinja2", "starlette", "uvicorn")


def serve(
    run: Positional[Path],
    *,
    checkpoint: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
) -> None:
    """Answer requests for texts over HTTP as OpenAI does, with a page to try it.

    Args:
        run: folder of the run, or a checkpoint in it; one that trains is followed
        checkpoint: best = of the lowest validation loss, last, or a step; none = always
            the newest
        host: address to listen at; any but 127.0.0.1 needs a key
        port: port to listen at; 0 = any free one
        api_key_file: file with the key that clients must send; none = the environment
            variable NPLLM_API_KEY, if it is set
    """
    from npllm.pages.packages import check_packages

    check_packages(NEEDED, "npllm serve needs", "serve")
    from npllm.serve.server import serve as serve_model

    serve_model(run, TextConsole(), checkpoint=checkpoint, host=host, port=port, api_key_file=api_key_file)


SERVE_VERBS: dict[str, Callable[..., None]] = {"serve": serve}
