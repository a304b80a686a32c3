"""Routes of the Responses API (OpenAI) and the Messages API (Anthropic)."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api import conversation_schemas as models
from actscope.gateway.api.conversation import ConversationResponse
from actscope.gateway.api.conversation_request import MESSAGES, RESPONSES, read_conversation
from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.routes.openai import ERRORS, Responses, admit
from actscope.gateway.upstream.headers import forwarded
from actscope.serving.errors import Problem, error_object
from actscope.serving.json_body import JsonRoute

router = APIRouter(tags=["openai"], responses=ERRORS, route_class=JsonRoute)

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_RESPONSE: Responses = {200: {"model": models.ResponseAnswer, "content": _STREAM}}
_MESSAGE: Responses = {200: {"model": models.MessageAnswer, "content": _STREAM}}


@router.post(RESPONSES, responses=_RESPONSE, response_class=Response)
async def create_response(body: models.ResponsesRequest, request: Request, gateway: Here) -> Response:
    """Create a response (OpenAI's Responses API). With `actscope` in the body, scores are returned in `actscope`."""
    return await _converse(RESPONSES, request, gateway)


@router.post(MESSAGES, responses=_MESSAGE, response_class=Response)
async def create_message(body: models.MessagesRequest, request: Request, gateway: Here) -> Response:
    """Create a message (Anthropic's Messages API). With `actscope` in the body, scores are returned in `actscope`."""
    try:
        return await _converse(MESSAGES, request, gateway)
    except Problem as problem:  # in Anthropic's form, which has OpenAI's fields and a type
        error = error_object(problem.status_code, problem.message, problem.param, problem.code)
        answer = msgspec.json.encode({"type": "error", **error})
        return Response(answer, problem.status_code, problem.headers, "application/json")


async def _converse(path: str, request: Request, gateway: Gateway) -> Response:
    engine = gateway.upstream.engine
    call = read_conversation(path, await request.body(), engine.kind if engine else "")
    engine = engine or gateway.upstream.require()
    await admit(call, engine, gateway)
    return gateway.answer(call, engine, forwarded(request.headers), ConversationResponse)
