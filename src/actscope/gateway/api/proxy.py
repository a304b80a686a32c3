"""Streaming reverse proxy for the paths that the gateway does not serve itself: bodies are passed through unchanged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from actscope.errors import UpstreamError
from actscope.gateway.api.payloads import encode
from actscope.gateway.upstream.controls import FAILURES
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.headers import passed, returned
from actscope.gateway.upstream.upstream import Upstream
from actscope.runtime.decoding import decode_json
from actscope.serving.errors import Problem, error_object, problem_response

_log = logging.getLogger(__name__)

_OURS = "/v1/actscope"
#: Size up to which a JSON body is read before it is passed on.
_MOST_CHECKED_BYTES = 1 << 20
_NO_SCORES = (
    "is passed to the engine, and its answer carries no scores: leave the field out. Scores are in the answers of "
    "/v1/chat/completions, /v1/completions, /v1/responses and /v1/messages, and by id at /v1/actscope/requests/{id}"
)
_SAFE = "/!$&'()*+,;=:@~"


class Passing:
    """Counter of the proxied requests in flight."""

    def __init__(self) -> None:
        self.n = 0


def target_of(request: Request) -> str:
    """Return path and query for the engine.

    The check applies to the path that the engine will see: it is unquoted once, checked, and quoted again.

    Raises:
        Problem: 404 for a path of the gateway's own, and for one with empty, `.` or `..` segments, backslashes or
            unprintable characters (path traversal).
    """
    path = str(request.scope["path"])
    segments = path.split("/")[1:]
    ours = path == _OURS or path.startswith(_OURS + "/")
    if ours or "\\" in path or any(s in ("", ".", "..") for s in segments) or not path.isprintable():
        raise Problem(404, f"no such path: {path[:200]}", code="not_found")
    query = request.scope.get("query_string", b"").decode("latin-1")
    return quote(path, safe=_SAFE) + (f"?{query}" if query else "")


async def checked_body(request: Request) -> bytes | None:
    """Return the body of a request after checking that it asks for no scores; None, without reading it, if it is not checked.

    Checked are JSON bodies up to 1 MiB. Larger ones are streamed, and the engine refuses or ignores the field.

    Raises:
        Problem: 400 if the body has the field `actscope`: the answers of proxied routes carry no scores.
    """
    kind, length = request.headers.get("content-type", ""), request.headers.get("content-length", "")
    is_json = kind.partition(";")[0].strip().lower() == "application/json"
    if not is_json or not length.isdigit() or len(length) > 9 or int(length) > _MOST_CHECKED_BYTES:
        return None
    body = await request.body()
    if b'"actscope"' in body and _asks(body):
        path = str(request.scope["path"])[:200]
        raise Problem(400, f"actscope: {path} {_NO_SCORES}", param="actscope", code="no_scores")
    return body


def _asks(body: bytes) -> bool:
    try:
        return decode_json(body, _Asking, UpstreamError, "body").actscope not in (None, False)
    except UpstreamError:  # no object: the engine says what is wrong with it
        return False


class _Asking(msgspec.Struct):
    actscope: object = None


class PassedResponse(Response):
    """Response that forwards one request to the engine and streams the answer back. Neither body is held whole, except `read`.

    If the client disconnects, the connection to the engine is closed.

    Args:
        request: The client's request.
        target: Path and query for the engine.
        engine: Engine to which it is sent.
        upstream: Names the reason of a failure.
        passing: Counts the request while it runs.
        read: Body of the request if it has been read already, else None.
    """

    def __init__(
        self,
        request: Request,
        target: str,
        engine: EngineConnection,
        upstream: Upstream,
        passing: Passing,
        read: bytes | None = None,
    ) -> None:
        self._method = request.method
        self._target = target
        self._headers_up = passed(request.headers)
        self._has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        self._engine = engine
        self._upstream = upstream
        self._passing = passing
        self._read = read
        self._body_read = asyncio.Event()
        self._refusal: HTTPException | None = None
        self._started: Message | None = None
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and send the engine's answer."""
        work = asyncio.create_task(self._work(scope, receive, send))
        watch = asyncio.create_task(self._watch(receive, work))
        self._passing.n += 1
        try:
            await asyncio.wait([work])
            if not work.cancelled():
                work.result()
        finally:
            self._passing.n -= 1
            work.cancel()
            watch.cancel()

    async def _watch(self, receive: Receive, work: asyncio.Task[None]) -> None:
        """Cancel `work` when the client disconnects. After the body, `receive` returns only the disconnect."""
        await self._body_read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._engine.in_use():
            try:
                await self._relay(receive, send)
            except FAILURES as error:
                await self._fail(error, scope, receive, send)

    async def _relay(self, receive: Receive, send: Send) -> None:
        body = self._body(receive) if self._has_body and self._read is None else self._read
        if body is None or body is self._read:
            self._body_read.set()
        response = await self._engine.endpoint.send(self._method, self._target, body, self._headers_up)
        try:
            self._started = _head(response)
            await send(self._started)
            async for piece in response.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            response.close()

    async def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        """Yield the client's body as it arrives.

        A refusal (body too large) is stored in `_refusal`, because aiohttp reports it as a broken connection only.
        """
        more = True
        while more:
            try:
                message = await receive()
            except HTTPException as refusal:
                self._refusal = refusal
                raise
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
        self._body_read.set()

    async def _fail(self, error: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
        """Report a failure to the client: as the answer, or as a last event of a stream. Any other answer is cut off."""
        if self._started is None:
            problem = self._refusal or self._upstream.failed(error)
            await problem_response(problem)(scope, receive, send)
            return
        reason = str(error) or type(error).__name__
        _log.warning("%s %s: the engine failed: %s", self._method, self._target.partition("?")[0], reason)
        if _is_stream(self._started):
            message = f"the engine failed while it answered: {reason}"
            event = b"data: " + encode(error_object(502, message, code="engine_failed")) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})


def _head(response: aiohttp.ClientResponse) -> Message:
    headers = [(n.lower().encode(), v.encode("latin-1")) for n, v in returned(response.headers).items()]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def _is_stream(head: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in head["headers"])
