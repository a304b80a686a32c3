"""HTTP server of the engine, for the gateway on the same machine: OpenAI routes and controls, over a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from actscope.engines.controls import control_routes, shown
from actscope.engines.hf.api.answers import Choice, Job
from actscope.engines.hf.api.jobs import chat_job, completion_job
from actscope.engines.hf.api.messages import message_job
from actscope.engines.hf.api.responses import response_job
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.request import Output
from actscope.engines.http import (
    ERROR_HANDLERS,
    answering_errors,
    error_body,
    error_response,
    json_response,
    model_list,
    read_body,
)
from actscope.errors import RequestRefused
from actscope.probes import Probe
from actscope.probes.bank import DescribedProbe
from actscope.recording.flight.recorder import FlightRecorder

T = TypeVar("T")

#: Size in bytes up to which a body is read on the event loop. Tokenizing so much takes a few milliseconds.
_SHORT_BYTES = 16 << 10
#: Number of threads that tokenize longer prompts.
_TOKENIZING = 2


class Mailboxes:
    """Dispatches outputs from the model's thread to the requests that wait for them on the event loop."""

    def __init__(self) -> None:
        self._boxes: dict[str, asyncio.Queue[Output]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def deliver(self, outputs: list[Output]) -> None:
        """Dispatch a step's outputs with one wake-up of the event loop. Called on the model's thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed, so no request is waiting
                self._loop.call_soon_threadsafe(self._sort, outputs)

    def open(self, request_id: str, box: asyncio.Queue[Output]) -> None:
        """Put the outputs of this request into `box`. Raises RequestRefused if the id is in use."""
        self._loop = asyncio.get_running_loop()
        if self._boxes.setdefault(request_id, box) is not box:
            raise RequestRefused(f"a request {request_id!r} is in flight already; choose another X-Request-Id")

    def close(self, request_id: str) -> None:
        """Discard later outputs of this request. An unknown id is ignored."""
        self._boxes.pop(request_id, None)

    def _sort(self, outputs: list[Output]) -> None:
        for output in outputs:
            box = self._boxes.get(output.request)
            if box is not None:
                box.put_nowait(output)


def create_app(engine: Engine, mailboxes: Mailboxes, flight: FlightRecorder | None = None) -> Starlette:
    """Create the application of one engine. With a flight recorder, requests can be marked for recording."""
    routes = _EngineRoutes(engine, mailboxes)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/responses", routes.responses, methods=["POST"]),
            Route("/v1/messages", routes.messages, methods=["POST"]),
            *control_routes(_EngineProbes(engine), flight, engine.has),
        ],
        exception_handlers=ERROR_HANDLERS,
    )


class _EngineProbes:
    """Probe controls of the engine. Changes happen on the model's thread, between two steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> bytes:
        return self._engine.bank.table()

    async def put(self, probe: Probe) -> DescribedProbe:
        slot = await asyncio.wrap_future(self._engine.put_probe(probe))
        return shown(self._engine.bank, slot)

    async def remove(self, probe_id: str) -> None:
        await asyncio.wrap_future(self._engine.remove_probe(probe_id))


class _EngineRoutes:
    def __init__(self, engine: Engine, mailboxes: Mailboxes) -> None:
        self._engine = engine
        self._mailboxes = mailboxes
        self._tokenizing = ThreadPoolExecutor(_TOKENIZING, "actscope-tokenizing")

    async def health(self, http: HttpRequest) -> Response:
        if not self._engine.alive:
            return error_response(503, "the model's thread has ended; see the engine's log", kind="server_error")
        return json_response({"status": "ok"})

    async def models(self, http: HttpRequest) -> Response:
        return model_list(self._engine.loaded.name, self._engine.loaded.max_context)

    @answering_errors
    async def chat(self, http: HttpRequest) -> Response:
        return await self._run(http, chat_job)

    @answering_errors
    async def completions(self, http: HttpRequest) -> Response:
        return await self._run(http, completion_job)

    @answering_errors
    async def responses(self, http: HttpRequest) -> Response:
        return await self._run(http, response_job)

    async def messages(self, http: HttpRequest) -> Response:
        """Answer a message. Errors have Anthropic's form, which is OpenAI's with a type."""
        response = await self._message(http)
        if response.status_code < 400 or not response.body:
            return response
        return json_response({"type": "error", **msgspec.json.decode(response.body)}, response.status_code)

    @answering_errors
    async def _message(self, http: HttpRequest) -> Response:
        return await self._run(http, message_job)

    async def _run(self, http: HttpRequest, parse: Callable[[Engine, bytes, str | None], Job]) -> Response:
        """Parse the body and run the request. A long prompt is tokenized on a thread; the others go on meanwhile."""
        body, request_id = await read_body(http), http.headers.get("x-request-id")
        if len(body) <= _SHORT_BYTES:
            job: Job | Response = parse(self._engine, body, request_id)
        else:
            work = asyncio.get_running_loop().run_in_executor(self._tokenizing, parse, self._engine, body, request_id)
            job = await _unless_left(http, work)
        if isinstance(job, Response):
            return job
        inbox = Inbox(self._engine, self._mailboxes, job)
        if job.stream:
            return StreamingResponse(_stream(job, inbox), media_type="text/event-stream")
        return await _unless_left(http, _whole(job, inbox))


class Inbox:
    """Asynchronous iterator over the outputs of one job. Closing it early aborts the choices that still run."""

    def __init__(self, engine: Engine, mailboxes: Mailboxes, job: Job) -> None:
        self._engine = engine
        self._mailboxes = mailboxes
        self._open: dict[str, Choice] = {}
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        try:
            for choice in job.choices:
                mailboxes.open(choice.request.id, self._outputs)
                self._open[choice.request.id] = choice
                engine.submit(choice.request)
        except RequestRefused:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[Choice, Output]]:
        while self._open:
            output = await self._outputs.get()
            choice = self._open[output.request]
            if output.finish_reason is not None:
                self._mailboxes.close(output.request)
                del self._open[output.request]
            yield choice, output

    def close(self) -> None:
        """Abort the choices that still run, and discard their later outputs."""
        for request_id in self._open:
            self._engine.abort(request_id)
            self._mailboxes.close(request_id)
        self._open = {}


async def _stream(job: Job, inbox: Inbox) -> AsyncIterator[bytes]:
    try:
        for event in job.begin():
            yield event
        async for choice, output in inbox:
            if output.error is not None:
                yield job.failure(error_body(output.error, "server_error"))
                return
            for event in job.take(choice, output):
                yield event
        for event in job.end():
            yield event
    finally:
        inbox.close()


async def _whole(job: Job, inbox: Inbox) -> Response:
    try:
        async for choice, output in inbox:
            if output.error is not None:
                return error_response(500, output.error, kind="server_error")
            job.take(choice, output)
    finally:
        inbox.close()
    return json_response(job.answer())


async def _unless_left(http: HttpRequest, work: Awaitable[T]) -> T | Response:
    """Return the result of `work`, or cancel it and return status 499 if the client disconnects first.

    Work that waits for a thread does not begin then. Work that a thread has begun is finished, and thrown away.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(http.receive())  # the body has been read, so the next message is the disconnect
    await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not working.done():
        working.cancel()
        return Response(status_code=499)
    return working.result()
