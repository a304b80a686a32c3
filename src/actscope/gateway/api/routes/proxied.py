"""Proxied routes: all other paths of the OpenAI API, and vLLM's own paths that are safe to expose."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api.dependencies import Here
from actscope.gateway.api.proxy import PassedResponse, checked_body, target_of
from actscope.serving.errors import Problem

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

#: Proxied paths outside of /v1. Paths that put vLLM to sleep, profile it or change it are excluded. A test compares them with
#: vLLM's routes.
PATHS = (
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/v2/rerank",
    "/v2/embed",
    "/inference/v1/generate",
    "/cohere/v2/chat",
    "/cohere/v2/chat/render",
    "/invocations",
    "/generative_scoring",
    "/load",
    "/tokenizer_info",
    "/version",
    "/ping",
)

router = APIRouter(include_in_schema=False)


async def pass_on(request: Request, gateway: Here) -> Response:
    """Forward the request to the engine and stream its answer back."""
    target = target_of(request)
    if gateway.passing.n >= gateway.settings.max_in_flight:
        message = f"at most {gateway.settings.max_in_flight} proxied requests may run at once: try again"
        raise Problem(429, message, code="too_many_requests", headers={"Retry-After": "1"})
    engine = gateway.upstream.require()
    body = await checked_body(request)
    return PassedResponse(request, target, engine, gateway.upstream, gateway.passing, body)


for _path in ("/v1/{path:path}", *PATHS):
    router.add_api_route(_path, pass_on, methods=METHODS, response_class=Response, name=f"pass {_path}")
