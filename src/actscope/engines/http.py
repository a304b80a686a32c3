"""Shared parts of the engines' HTTP servers: responses, OpenAI error bodies, bounded request bodies, the unix socket."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from actscope.errors import ActscopeError, RequestRefused, RingError
from actscope.runtime.decoding import decode_json
from actscope.serving.error_answer import ErrorAnswer

#: Maximum size of a body in bytes. The gateway, which alone can connect, has a limit of its own, which may be set below this.
MAX_BODY = 1 << 30
_BACKLOG = 256
_STATUS = {"model_not_found": 404, "overloaded": 429, "shutting_down": 503}

Self = TypeVar("Self")
Handler = Callable[[Self, Request], Awaitable[Response]]
ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


async def _on_http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    what = {404: f"no such path: {http.url.path:.200}", 405: f"{http.method:.20} is not allowed here"}
    response = error_response(status, what.get(status, str(error.detail)), code="not_found" if status == 404 else None)
    response.headers.update(error.headers or {})
    return response


async def _on_failure(http: Request, error: Exception) -> Response:
    return error_response(500, "the engine failed on this request; its log has the details", kind="server_error")


#: Handlers of a Starlette application for errors that no route answers: unknown paths and methods, and failures.
ERROR_HANDLERS: dict[int | type[Exception], ErrorHandler] = {HTTPException: _on_http_error, Exception: _on_failure}


def answering_errors(handler: Handler[Self]) -> Handler[Self]:
    """Decorate a handler so that an ActscopeError becomes an error response.

    The status is 400, or the one for the code of a RequestRefused (404, 429, 503).
    """

    async def answer(self: Self, http: Request) -> Response:
        try:
            return await handler(self, http)
        except RequestRefused as error:
            return error_response(_STATUS.get(error.code or "", 400), str(error), param=error.param, code=error.code)
        except ActscopeError as error:
            return error_response(400, str(error))

    return answer


async def read_body(http: Request, limit: int = MAX_BODY) -> bytes:
    """Return the whole body. Raises RequestRefused as soon as it exceeds `limit` bytes."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > limit:
            raise RequestRefused(f"the body is larger than {limit >> 20} MiB")
    return bytes(body)


async def read_json(http: Request) -> Any:
    """Return the body as JSON. Raises RequestRefused if it is not JSON or too large."""
    return decode_json(await read_body(http), object, RequestRefused, "the body is not valid JSON")


def json_response(data: object, status: int = 200) -> Response:
    """Return `data` as a JSON response."""
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def model_list(name: str, max_context: int) -> Response:
    """Return the response of GET /v1/models for the single model; `max_context` in tokens."""
    return json_response({"object": "list", "data": [_model(name, max_context)]})


def _model(name: str, max_context: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "actscope", "max_model_len": max_context}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> Response:
    """Return an OpenAI error body as a response."""
    return json_response(error_body(message, kind, param, code), status)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> ErrorAnswer:
    """Return an error in the form that OpenAI clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket at `path`, for this user only, and remove it on exit. Raises RingError on failure."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _listen(listener, path)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
    finally:
        listener.close()


def _listen(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # no client can connect before `listen`; a umask would affect all threads
    except OSError as error:
        raise RingError(f"{path}: cannot listen there ({error}): set ACTSCOPE_RUNTIME_DIR to a shorter path") from error
    listener.listen(_BACKLOG)
