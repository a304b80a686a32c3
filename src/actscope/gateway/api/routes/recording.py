"""Routes of the recording: its state, and marks, which keep a request and can be set at any time."""

from __future__ import annotations

import re

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api import schemas
from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.routes.openai import ERRORS, Responses, several_requests
from actscope.gateway.upstream.controls import error_code
from actscope.gateway.upstream.upstream import json_object
from actscope.ring.request_ids import ring_ids
from actscope.serving.errors import Problem
from actscope.serving.json_body import JsonRoute

_MARK_ERRORS: Responses = {
    409: {"model": schemas.ErrorBody, "description": "The engine keeps no recording"},
    410: {"model": schemas.ErrorBody, "description": "Too late: the rows of the request are lost"},
}

#: Form of the engines' request ids. Only ids of this form are put into a path on the engine.
_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._:-]{1,256}")

router = APIRouter(tags=["actscope"], responses=ERRORS, route_class=JsonRoute)


@router.get("/v1/actscope/recording", response_model=schemas.RecordingState)
async def get_recording(gateway: Here) -> Response:
    """Return the state of the engine's recording and flight recorder, with counts of lost rows."""
    status, body = await gateway.upstream.control(lambda c: c.recording())
    if status == 404:  # an engine without this route
        return Response(msgspec.json.encode({"recording": False}), media_type="application/json")
    json_object(body)
    return Response(body, status, media_type="application/json")


@router.post("/v1/actscope/requests/{id}/mark", response_model=schemas.Marked, responses=_MARK_ERRORS)
async def mark_request(id: str, request: Request, gateway: Here, body: schemas.MarkRequest | None = None) -> Response:
    """Keep a request: by default all rows still in the flight recorder and all rows to come. Marking again changes nothing."""
    (names, replica), asked = _engines_names(gateway, id), await request.body()
    status, answer = await gateway.upstream.control(lambda c: c.mark(names, asked, replica))
    if status == 404 and error_code(answer) != "request_not_found":  # an engine without this route
        raise Problem(409, "this engine keeps no recording", code="not_recording")
    json_object(answer)
    return Response(answer, status, media_type="application/json")


def _engines_names(gateway: Gateway, request: str) -> tuple[list[str], str]:
    """Return the ids under which the engine may know a request, most specific first, and the engine that runs it, if known.

    vLLM's recording uses the id that clients see. If that id was used before, it uses the id in the ring. An id that is not
    in the gateway's log is returned as it is, because the engine may still know it.

    Raises:
        Problem: 404 if the id has another form, or names several requests.
    """
    log = gateway.sessions.get(request)
    names = [name for name in ring_ids(request) if _ID.fullmatch(name)]
    if not names:
        raise Problem(404, f"no request {request[:200]!r}", code="request_not_found")
    if log is not None:
        names = [log.engine_id, log.external]
        if log.engine_id and len(gateway.sessions.candidates(log.external)) > 1:
            names = [log.engine_id]  # others share the external id
        return list(dict.fromkeys(filter(None, names))), log.replica
    several = gateway.sessions.candidates(request)
    if several:
        raise several_requests(request, several, "mark")
    return names, ""
