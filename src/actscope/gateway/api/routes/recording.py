"""Keeping requests: marks, set at any time, and what the engine records."""

from __future__ import annotations

import re

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api import schemas
from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.routes.openai import ERRORS, Responses
from actscope.gateway.upstream.controls import error_code
from actscope.gateway.upstream.upstream import json_object
from actscope.serving.errors import Problem

_MARK_ERRORS: Responses = {
    409: {"model": schemas.ErrorBody, "description": "The engine keeps no recording"},
    410: {"model": schemas.ErrorBody, "description": "Too late: the request's rows have been forgotten"},
}

#: What engines call requests; nothing else becomes part of a path on the engine.
_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._:-]{1,256}")

router = APIRouter(tags=["actscope"], responses=ERRORS)


@router.get("/v1/actscope/recording", response_model=schemas.RecordingState)
async def get_recording(gateway: Here) -> Response:
    """What the engine records, what it still has at hand, and what was lost."""
    status, body = await gateway.upstream.control(lambda c: c.recording())
    if status == 404:  # an engine that does not know how
        return Response(msgspec.json.encode({"recording": False}), media_type="application/json")
    json_object(body)
    return Response(body, status, media_type="application/json")


@router.post("/v1/actscope/requests/{id}/mark", response_model=schemas.Marked, responses=_MARK_ERRORS)
async def mark_request(id: str, request: Request, gateway: Here, body: schemas.MarkRequest | None = None) -> Response:
    """Keep a request: what is still at hand of it, and what comes until it ends. Marking again changes nothing."""
    names, asked = _engines_names(gateway, id), await request.body()
    status, answer = await gateway.upstream.control(lambda c: c.mark(names, asked))
    if status == 404 and error_code(answer) != "request_not_found":  # an engine that does not know how
        raise Problem(409, "this engine keeps no recording", code="not_recording")
    json_object(answer)
    return Response(answer, status, media_type="application/json")


def _engines_names(gateway: Gateway, request: str) -> list[str]:
    """What the engine may call a request; one that the gateway has forgotten, or never knew, it may still have.

    vLLM's recording has the name that clients know, but for a request whose name had been used before: that has the ring's.
    """
    if not _ID.fullmatch(request):
        raise Problem(404, f"no request {request[:200]!r}", code="request_not_found")
    log = gateway.sessions.get(request)
    if log is not None:
        return list(dict.fromkeys(filter(None, (log.engine_id, log.request))))
    choices = gateway.sessions.choices(request)
    if choices:
        raise Problem(
            404, f"{request} has {len(choices)} choices; mark one of {', '.join(choices)}", code="request_not_found"
        )
    return [request]
