"""Routes of the OpenAI API: completions and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api import schemas as models
from actscope.gateway.api.completion import CompletionResponse
from actscope.gateway.api.completion_request import (
    CHAT,
    COMPLETIONS,
    Call,
    CompletionRequest,
    check_sites,
    mark_body,
    read_call,
)
from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.payloads import encode
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.upstream.controls import error_code, error_message
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.headers import forwarded
from actscope.gateway.upstream.upstream import json_object
from actscope.serving.errors import Problem
from actscope.serving.json_body import JsonRoute

#: Answers by status, as FastAPI documents them.
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {status: {"model": models.ErrorBody} for status in (400, 401, 403, 404, 413, 429, 502, 503)}

#: Time in seconds that a mark waits for its request, which is sent after it.
_MARK_WAITS_SECONDS = 60.0

#: Number of requests that an error names.
_NAMED = 32

router = APIRouter(tags=["openai"], responses=ERRORS, route_class=JsonRoute)


def _answers(whole: type, chunk: type) -> Responses:
    """Return the 200 response of a completion for OpenAPI: one object, or chunks when streaming (by reference only)."""
    schema = {"$ref": f"#/components/schemas/{chunk.__name__}"}
    return {200: {"model": whole, "content": {"text/event-stream": {"schema": schema}}}}


@router.post(
    CHAT,
    responses=_answers(models.ChatCompletion, models.ChatCompletionChunk),
    response_class=Response,
)
async def create_chat_completion(body: models.ChatCompletionRequest, request: Request, gateway: Here) -> Response:
    """Create a chat completion. With `actscope` in the body, scores are returned in `choices[i].actscope`."""
    return await _complete(CHAT, request, gateway)


@router.post(COMPLETIONS, responses=_answers(models.Completion, models.Completion), response_class=Response)
async def create_completion(body: models.CompletionRequest, request: Request, gateway: Here) -> Response:
    """Create a text completion. With `actscope` in the body, scores are returned in `choices[i].actscope`."""
    return await _complete(COMPLETIONS, request, gateway)


@router.get("/v1/models", response_model=models.Models)
async def list_models(gateway: Here) -> Response:
    """List the engine's models."""
    status, body = await gateway.upstream.ask("GET", "/v1/models")
    return Response(body, status, media_type="application/json")


@router.get("/v1/models/{id:path}", response_model=models.Model)
async def get_model(id: str, gateway: Here) -> Response:
    """Return one of the engine's models."""
    status, body = await gateway.upstream.ask("GET", "/v1/models")
    if status != 200:
        return Response(body, status, media_type="application/json")
    listed = json_object(body).get("data")
    found = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
    model = next((model for model in found if model.get("id") == id), None)
    if model is None:
        served = ", ".join(f"`{one.get('id')}`" for one in found)
        message = f"The model `{id[:200]}` does not exist; this server has {served or 'none'}"
        raise Problem(404, message, param="model", code="model_not_found")
    return Response(encode(model), media_type="application/json")


async def _complete(path: str, request: Request, gateway: Gateway) -> Response:
    settings, engine = gateway.settings, gateway.upstream.engine
    call = read_call(path, await request.body(), settings.max_n, engine.kind if engine else "")
    engine = engine or gateway.upstream.require()
    await admit(call, engine, gateway)
    return gateway.answer(call, engine, forwarded(request.headers), CompletionResponse)


async def admit(call: Call, engine: EngineConnection, gateway: Gateway) -> None:
    """Check what a call asks for, and that there is room for it. Sends its mark if the engine needs one.

    Raises:
        Problem: 400 if the engine does not have what is asked for, 429 if too many completions run.
    """
    if call.ask is not None:
        await _check_probes(call.ask, engine)
        await _check_features(call.ask, engine)
        await _record(call, call.ask, engine, gateway)
    if gateway.sessions.n_in_flight >= gateway.settings.max_in_flight:
        message = f"at most {gateway.settings.max_in_flight} completions may run at once: try again"
        raise Problem(429, message, code="too_many_requests", headers={"Retry-After": "1"})


async def _record(call: Call, ask: CompletionRequest, engine: EngineConnection, gateway: Gateway) -> None:
    """Check the recording options, and mark the request if needed.

    vLLM reads the options from the request itself. Other engines are sent a mark for each choice before the request.
    """
    if engine.card is not None:
        check_sites(ask.options, engine.card.n_layers)
    if engine.kind == "vllm" or not ask.options.wants_mark:
        return
    mark = mark_body(ask.options, _MARK_WAITS_SECONDS)
    for choice in call.choices:
        status, answer = await gateway.upstream.control(lambda c, choice=choice: c.mark([choice], mark))  # type: ignore[misc]
        if status in (404, 405, 409):
            name = "keep" if ask.options.keep is not None else "rows"
            message = f"actscope.{name}: this engine keeps no recording"
            raise Problem(400, message, param=f"actscope.{name}", code="not_recording")
        if status >= 300:
            raise Problem(status, error_message(answer), param="actscope", code=error_code(answer))


async def _check_probes(ask: CompletionRequest, engine: EngineConnection) -> None:
    """Raise Problem (400) for an unknown probe. Before that, the table is fetched again: it may be out of date."""
    if ask.probes is None or set(ask.probes) <= set(engine.table.columns.ids):
        return
    known = (await engine.refresh_table()).columns.ids
    unknown = [name for name in ask.probes if name not in known]
    if unknown:
        missing, there = (", ".join(map(repr, names)) or "none" for names in (unknown, known))
        message = f"actscope.probes: unknown probe {missing}; loaded: {there}"
        raise Problem(400, message, param="actscope.probes", code="unknown_probe")


async def _check_features(ask: CompletionRequest, engine: EngineConnection) -> None:
    """Raise Problem (400) if features are requested and the engine has no SAE. Before that, the table is fetched again."""
    if ask.features and engine.table.columns.sae is None and (await engine.refresh_table()).columns.sae is None:
        raise no_features("actscope.features")


def several_requests(name: str, logs: Sequence[RequestLog], verb: str) -> Problem:
    """Return the error (404) for a name of several requests: a response with several choices, or an id that requests share."""
    named = ", ".join(log.request for log in logs[:_NAMED]) + (" …" if len(logs) > _NAMED else "")
    are_choices = len({log.external for log in logs}) == len(logs)
    what = f"{name} has {len(logs)} choices" if are_choices else f"{name} is the X-Request-Id of {len(logs)} requests"
    return Problem(404, f"{what}; {verb} one of {named}", code="several_requests")


def no_features(param: str) -> Problem:
    """Return the error (400) for a request for features to an engine without an SAE."""
    message = f"{param}: the engine computes no features: start vLLM with ACTSCOPE_SAE set to an SAE"
    return Problem(400, message, param=param, code="no_features")
