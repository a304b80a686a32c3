"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from actscope.serving.error_answer import ErrorAnswer

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
}


class Problem(HTTPException):
    """An error that the client receives in OpenAI's format.

    Attributes:
        message: Human-readable text.
        param: Name of the request field at fault, or None.
        code: Machine-readable code such as "invalid_value", or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message = message
        self.param = param
        self.code = code


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorAnswer:
    """Return an error as OpenAI's JSON object. `type` follows from the HTTP status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem_response(problem: HTTPException) -> Response:
    """Return the JSON response for an error, with its status and headers."""
    param, code = (problem.param, problem.code) if isinstance(problem, Problem) else (None, None)
    body = msgspec.json.encode(error_object(problem.status_code, str(problem.detail), param, code))
    return Response(body, problem.status_code, problem.headers, "application/json")


def install_handlers(app: FastAPI) -> None:
    """Install handlers so that every error of `app`, including FastAPI's own, is answered in OpenAI's format."""
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_crash)


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return problem_response(exc)


async def _on_crash(request: Request, exc: Exception) -> Response:
    return problem_response(
        Problem(500, "the server failed on this request; its log has the details", code="internal_error")
    )


async def _on_validation_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return problem_response(_describe(exc))


def _describe(exc: RequestValidationError) -> Problem:
    first = exc.errors()[0]
    loc = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not valid JSON: {_place(exc.body, first)}", code="invalid_json")
    if not loc:
        return Problem(400, "the body must be a JSON object with content type application/json", code="invalid_body")
    param = ".".join(loc)
    message = f"{param}: {first['msg']}"
    if len(exc.errors()) > 1:
        message += f" (and {len(exc.errors()) - 1} more)"
    return Problem(400, message, param=param, code="invalid_value")


def _place(body: object, error: ErrorDetails) -> str:
    """Return the text of a JSON error with its line and column, counted from 1."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    position = int(error["loc"][-1])
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"{error['ctx']['error']} at line {line}, column {column}"
