"""The engine's HTTP server, for the gateway on the same machine: OpenAI routes and the probes, over a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from actscope.engines.hf.engine import Engine
from actscope.engines.hf.openai import Choice, Job, chat_job, completion_job
from actscope.engines.hf.request import Output
from actscope.errors import ActscopeError, ProbeError, RequestRefused, SettingsError
from actscope.probes import probe_from_json
from actscope.recording.flight import FlightRecorder
from actscope.recording.marked import Marked
from actscope.recording.window import Extent

MAX_BODY = 32 << 20
#: How long a mark waits for a request that the engine has but has not begun.
_LONGEST_WAIT_S = 3600.0

B = TypeVar("B", bound=msgspec.Struct)


class Mailboxes:
    """Carries outputs from the model's thread to the requests that wait for them on the event loop."""

    def __init__(self) -> None:
        self._boxes: dict[str, asyncio.Queue[Output]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def deliver(self, outputs: list[Output]) -> None:
        """From the model's thread: one wake-up of the loop for a whole step."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._sort, outputs)

    def open(self, request_id: str, box: asyncio.Queue[Output]) -> None:
        """Put the outputs of this request into `box`. Raises RequestRefused when that id is in use."""
        self._loop = asyncio.get_running_loop()
        if self._boxes.setdefault(request_id, box) is not box:
            raise RequestRefused(f"a request {request_id!r} is in flight already; choose another X-Request-Id")

    def close(self, request_id: str) -> None:
        self._boxes.pop(request_id, None)

    def _sort(self, outputs: list[Output]) -> None:
        for output in outputs:
            box = self._boxes.get(output.request)
            if box is not None:
                box.put_nowait(output)


def create_app(engine: Engine, mailboxes: Mailboxes, flight: FlightRecorder | None = None) -> Starlette:
    """The routes of one engine; with a flight recorder, its requests can be marked."""
    routes = _Routes(engine, mailboxes)
    recording = _RecordingRoutes(engine, flight)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/actscope/probes", routes.probes),
            Route("/v1/actscope/probes/{id}", routes.put_probe, methods=["PUT"]),
            Route("/v1/actscope/probes/{id}", routes.delete_probe, methods=["DELETE"]),
            Route("/v1/actscope/recording", recording.describe),
            Route("/v1/actscope/recording/marks", recording.mark_several, methods=["POST"]),
            Route("/v1/actscope/requests/{id}/mark", recording.mark, methods=["POST"]),
        ]
    )


Self = TypeVar("Self")
Handler = Callable[[Self, HttpRequest], Awaitable[Response]]


def _answering_errors(handler: Handler[Self]) -> Handler[Self]:
    async def answer(self: Self, http: HttpRequest) -> Response:
        try:
            return await handler(self, http)
        except RequestRefused as error:
            status = {"model_not_found": 404, "overloaded": 429, "shutting_down": 503}.get(error.code or "", 400)
            return _error(status, str(error), param=error.param, code=error.code)
        except ActscopeError as error:
            return _error(400, str(error))

    return answer


class _Routes:
    def __init__(self, engine: Engine, mailboxes: Mailboxes) -> None:
        self._engine = engine
        self._mailboxes = mailboxes

    async def health(self, http: HttpRequest) -> Response:
        if not self._engine.alive:
            return _error(503, "the model's thread has ended; see the engine's log", kind="server_error")
        return _json({"status": "ok"})

    async def models(self, http: HttpRequest) -> Response:
        loaded = self._engine.loaded
        card = {
            "id": loaded.name,
            "object": "model",
            "created": 0,
            "owned_by": "actscope",
            "max_model_len": loaded.max_context,
        }
        return _json({"object": "list", "data": [card]})

    @_answering_errors
    async def chat(self, http: HttpRequest) -> Response:
        job = chat_job(self._engine, await _body(http), http.headers.get("x-request-id"))
        return await self._run(http, job)

    @_answering_errors
    async def completions(self, http: HttpRequest) -> Response:
        job = completion_job(self._engine, await _body(http), http.headers.get("x-request-id"))
        return await self._run(http, job)

    @_answering_errors
    async def probes(self, http: HttpRequest) -> Response:
        bank = self._engine.bank
        return Response(bank.table(), media_type="application/json")

    @_answering_errors
    async def put_probe(self, http: HttpRequest) -> Response:
        try:
            data = msgspec.json.decode(await _body(http))
        except msgspec.DecodeError as error:
            raise RequestRefused(f"the body is not valid JSON: {error}") from error
        probe = probe_from_json(http.path_params["id"], data)
        slot = await asyncio.wrap_future(self._engine.put_probe(probe))
        described = (p for p in self._engine.bank.describe() if p["slot"] == slot)
        return _json(next(described, None))

    @_answering_errors
    async def delete_probe(self, http: HttpRequest) -> Response:
        try:
            await asyncio.wrap_future(self._engine.remove_probe(http.path_params["id"]))
        except ProbeError as error:
            return _error(404, str(error))
        return Response(status_code=204)

    async def _run(self, http: HttpRequest, job: Job) -> Response:
        inbox = Inbox(self._engine, self._mailboxes, job)
        if job.stream:
            return StreamingResponse(_stream(job, inbox), media_type="text/event-stream")
        return await _unless_left(http, _whole(job, inbox))


class MarkBody(msgspec.Struct, forbid_unknown_fields=True):
    """`before`, `after`: how much to keep around the request's last row, such as 20 (tokens), "20 tokens" or "5s"."""

    why: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    before: str | int | None = None
    after: str | int | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0  # seconds, for a request that has not begun

    def extent(self, name: Literal["before", "after"]) -> Extent | None:
        text = getattr(self, name)
        try:
            return None if text is None else Extent.parse(text)
        except SettingsError as error:
            raise RequestRefused(str(error), param=name) from error


class SeveralBody(MarkBody):
    """`which`: all requests that run now, or the one that began last."""

    which: Literal["running", "last"] = "running"


class _RecordingRoutes:
    """What is kept of the engine's requests. Without a flight recorder nothing is, and marks are refused."""

    def __init__(self, engine: Engine, flight: FlightRecorder | None) -> None:
        self._engine = engine
        self._flight = flight

    async def describe(self, http: HttpRequest) -> Response:
        return _json(self._flight.describe() if self._flight else {"recording": False})

    @_answering_errors
    async def mark(self, http: HttpRequest) -> Response:
        if self._flight is None:
            return _not_recording()
        request, body = http.path_params["id"], _mark_body(await _body(http), MarkBody)
        wait = body.wait or (_LONGEST_WAIT_S if self._engine.has(request) else 0.0)
        marking = self._flight.mark(
            request, body.why or "", before=body.extent("before"), after=body.extent("after"), wait_seconds=wait
        )
        marked = await asyncio.wrap_future(marking)
        if marked.state == "unknown":
            return _error(404, f"no request {request[:200]!r} is known to this engine", code="request_not_found")
        if marked.state == "forgotten":
            lost = f"all {marked.missing} of its positions have left the flight recorder"
            return _error(410, f"too late to keep {request[:200]!r}: {lost}", code="gone")
        return self._answer(described(marked))

    @_answering_errors
    async def mark_several(self, http: HttpRequest) -> Response:
        if self._flight is None:
            return _not_recording()
        body = _mark_body(await _body(http), SeveralBody)
        choose = self._flight.mark_running if body.which == "running" else self._flight.mark_last
        marked = await asyncio.wrap_future(
            choose(body.why or "", before=body.extent("before"), after=body.extent("after"))
        )
        return self._answer({"marks": [described(one) for one in marked]})

    def _answer(self, data: dict[str, Any]) -> Response:
        assert self._flight is not None
        failure = self._flight.failure
        if failure is not None:
            return _error(503, f"the recording has failed, nothing more is kept: {failure}", code="recording_failed")
        return _json(data)


def described(marked: Marked) -> dict[str, Any]:
    """A mark's answer as JSON."""
    return {**asdict(marked), "missing": marked.missing}


def _mark_body(raw: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"the body of a mark cannot be read: {error}") from error


def _not_recording() -> Response:
    message = "this server keeps no recording: start it with --record DIR to be able to keep requests"
    return _error(409, message, code="not_recording")


class Inbox:
    """The outputs of one job, choice by choice, as they come. Leaving before the end aborts what still runs."""

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
        for request_id in self._open:
            self._engine.abort(request_id)
            self._mailboxes.close(request_id)
        self._open = {}


async def _stream(job: Job, inbox: Inbox) -> AsyncIterator[bytes]:
    ids: dict[int, list[int]] = {choice.index: [] for choice in job.choices}
    try:
        async for choice, output in inbox:
            if output.error is not None:
                yield b"data: " + msgspec.json.encode(_error_body(output.error, "server_error")) + b"\n\n"
                return
            ids[choice.index] += output.token_ids
            for event in job.chunks(choice, output):
                yield event
        if job.include_usage:
            yield job.usage_chunk(job.usage(list(ids.values())))
        yield b"data: [DONE]\n\n"
    finally:
        inbox.close()


async def _whole(job: Job, inbox: Inbox) -> Response:
    n = len(job.choices)
    texts, ids, reasons = [""] * n, [[] for _ in range(n)], ["stop"] * n  # type: list[str], list[list[int]], list[str]
    try:
        async for choice, output in inbox:
            if output.error is not None:
                return _error(500, output.error, kind="server_error")
            texts[choice.index] += output.text
            ids[choice.index] += output.token_ids
            reasons[choice.index] = output.finish_reason or "stop"
    finally:
        inbox.close()
    return _json(job.answer(texts, ids, reasons))


async def _unless_left(http: HttpRequest, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, which is cancelled when the client closes the connection first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(http.receive())  # the body has been read: what comes next is the disconnect
    await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not working.done():
        working.cancel()
        return Response(status_code=499)
    return working.result()


async def _body(http: HttpRequest) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RequestRefused(f"the body is larger than {MAX_BODY >> 20} MiB")
    return bytes(body)


def _json(data: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _error(
    status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> Response:
    return _json(_error_body(message, kind, param, code), status)


def _error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
