"""The routes of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from npllm.errors import NpllmError
from npllm.files.strict_json import parse_json
from npllm.output import shell_word
from npllm.pages.page import render
from npllm.serve import protocol
from npllm.serve.answers import Answer
from npllm.serve.errors import ApiError
from npllm.serve.protocol import Asked
from npllm.serve.scheduler import Full, Scheduler, Stopped
from npllm.serve.weights import Source
from npllm.serve.writing import Piece, Writing

# A body up to so many times the limit is read and dropped: a client whose connection is
# cut while it sends may not read why.
DROPPED = 32
PAGE_TOKENS = 256  # of an answer, at first
# The page itself holds the rest of its policy, with the hash of its script.
PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What one client may take from the others.

    active: texts that are written at a time. waiting: texts that wait for their turn;
    a request for more is refused. body_bytes: of a request. body_seconds: until it has
    come, and until the head of a request has.
    """

    active: int = 32
    waiting: int = 64
    body_bytes: int = 1 << 20
    body_seconds: float = 10.0


class Application:
    """The answers to requests about one model.

    needs_key: whether the page asks for a key.
    """

    def __init__(self, source: Source, limits: Limits, *, needs_key: bool):
        self.source, self.limits, self.needs_key = source, limits, needs_key
        self.scheduler = Scheduler(limits.active, limits.waiting)

    def starlette(self) -> Starlette:
        """The application as ASGI."""
        return Starlette(
            routes=[
                Route("/", self.page, methods=["GET"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name}", self.model, methods=["GET"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            exception_handlers={
                ApiError: lambda request, error: error.response(),
                NpllmError: lambda request, error: ApiError(500, error.message).response(),
                HTTPException: _http_error,
                ClientDisconnect: lambda request, error: Response(status_code=400),
                Exception: lambda request, error: ApiError(500, "The server has failed; its log says why.").response(),
            },
        )

    async def page(self, request: Request) -> Response:
        """GET /: the page to try the model."""
        served = await asyncio.to_thread(self.source.current)
        html = render(
            "serve.html",
            name=self.source.name,
            chat=served.asked.is_chat,
            block_size=served.block_size,
            usual_tokens=max(1, min(PAGE_TOKENS, served.block_size // 2)),
            needs_key=self.needs_key,
            example=example(str(request.base_url).rstrip("/"), with_key=self.needs_key),
            contents=[],
        )
        return HTMLResponse(html, headers=PAGE_HEADERS)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the one model."""
        return JSONResponse({"object": "list", "data": [await self._described()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        described = await self._described()
        if request.path_params["name"] != described["id"]:
            what = f"The model {request.path_params['name']:.80} does not exist here; ask for {described['id']}."
            raise ApiError(404, what, param="model", code="model_not_found")
        return JSONResponse(described)

    async def _described(self) -> dict[str, Any]:
        served = await asyncio.to_thread(self.source.current)
        return {
            "id": self.source.name,
            "object": "model",
            "created": served.created,
            "owned_by": "npllm",
            "step": served.step,
            "system_fingerprint": served.fingerprint,
            "context_length": served.block_size,
            "chat": served.asked.is_chat,
        }

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, protocol.completion)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, protocol.chat)

    async def _answer(self, request: Request, parse: Callable[..., Asked]) -> Response:
        body = await read_json(request, self.limits)
        served = await asyncio.to_thread(self.source.current)
        # In a thread of its own: encoding a long prompt takes a while.
        asked = await asyncio.to_thread(parse, body, served, self.source.name, self.limits.active)
        texts = Texts(self.scheduler, asked)
        answer = Answer(asked, self.source.name)
        request.state.usage = answer.usage
        if asked.stream:
            return EventStream(events(texts, answer), texts.cancel)
        return await _unless_client_leaves(request, _whole(texts, answer), texts.cancel)


def example(address: str, *, with_key: bool) -> str:
    """A command that asks the server for a text."""
    key = ' -H "Authorization: Bearer $NPLLM_API_KEY"' if with_key else ""
    body = shell_word('{"prompt": "The ", "max_tokens": 32}')
    return f'curl {address}/v1/completions{key} -H "Content-Type: application/json" -d {body}'


class Texts:
    """The texts of one request, as the scheduler writes them. Raises ApiError where the
    server is full."""

    def __init__(self, scheduler: Scheduler, asked: Asked):
        self._scheduler = scheduler
        self._news: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver_to(index: int) -> Callable[[Piece | Exception], None]:
            return lambda news: loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

        self._writings = [Writing(asked.served, order, deliver_to(i)) for i, order in enumerate(asked.orders)]
        try:
            scheduler.submit(self._writings)
        except Full:
            what = "The server writes as many texts as it can; try again in a moment."
            raise ApiError(429, what, code="too_many_requests", headers={"Retry-After": "1"}) from None
        except Stopped:
            raise _ending() from None

    def cancel(self) -> None:
        """Stop writing the texts."""
        self._scheduler.cancel(self._writings)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield each piece with the number of its text, until all texts have ended."""
        going_on = len(self._writings)
        while going_on:
            index, news = await self._news.get()
            if isinstance(news, Stopped):
                raise _ending()
            if isinstance(news, Exception):
                raise news
            going_on -= news.finish is not None
            yield index, news


def _ending() -> ApiError:
    return ApiError(503, "The server is ending; try again when it has started anew.", code="server_ending")


async def _whole(texts: Texts, answer: Answer) -> Response:
    found: list[list[Piece]] = [[] for _ in answer.asked.orders]
    async for index, piece in texts.pieces():
        found[index].append(piece)
    return JSONResponse(answer.whole(found))


async def events(texts: Texts, answer: Answer) -> AsyncIterator[str]:
    """Yield the server-sent events of an answer."""
    started: set[int] = set()
    try:
        async for index, piece in texts.pieces():
            yield _event(answer.chunk(index, piece, first=index not in started))
            started.add(index)
        if answer.asked.include_usage:
            yield _event(answer.last_chunk())
    except (ApiError, NpllmError) as error:
        refused = error if isinstance(error, ApiError) else ApiError(500, error.message)
        yield _event(refused.body())
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """A stream of events. on_end: called when it ends, or its client leaves."""

    def __init__(self, content: AsyncIterator[str], on_end: Callable[[], None]):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._on_end = on_end

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _unless_client_leaves(request: Request, answer, cancel: Callable[[], None]) -> Response:
    """Return the answer. If the client leaves before, nothing is written any more."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=400)  # which nobody reads
    finally:
        cancel()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def read_json(request: Request, limits: Limits) -> Any:
    """Return the JSON of a request's body. Raises ApiError for one that is too large,
    too slow, or no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another origin cannot send this kind without asking
        raise ApiError(415, "The Content-Type is not application/json; send JSON.")
    body, n_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                n_bytes += len(chunk)
                if n_bytes <= limits.body_bytes:
                    body += chunk
                elif n_bytes > DROPPED * limits.body_bytes:
                    break
    except TimeoutError:
        what = f"The body did not come within {limits.body_seconds:g} seconds; send it at once."
        raise ApiError(408, what, code="body_too_slow", headers={"Connection": "close"}) from None
    if n_bytes > limits.body_bytes:
        what = f"The body has more than {limits.body_bytes:,} bytes; send a shorter one."
        raise ApiError(413, what, code="body_too_large", headers={"Connection": "close"})
    try:
        return parse_json(bytes(body))
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON ({error}); send JSON.") from None


def _http_error(request: Request, error: HTTPException) -> Response:
    mend = {
        404: f"There is nothing at {request.url.path:.80}; the README of npllm serve lists the addresses.",
        405: f"{request.method} is not answered at {request.url.path:.80}; use another method.",
    }
    message = mend.get(error.status_code, f"{error.detail}.")
    return ApiError(error.status_code, message, headers=error.headers).response()
