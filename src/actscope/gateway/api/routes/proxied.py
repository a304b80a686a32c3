"""Every other path of OpenAI's API, and vLLM's own that do no harm: passed on as they come."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from actscope.gateway.api.dependencies import Here
from actscope.gateway.api.proxy import PassedResponse, target_of
from actscope.serving.errors import Problem

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

#: Outside of /v1. Those with which vLLM is put to sleep, profiled or changed are not here.
PATHS = (
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/v2/rerank",
    "/v2/embed",
    "/version",
    "/ping",
    "/metrics",
)

router = APIRouter(include_in_schema=False)


async def pass_on(request: Request, gateway: Here) -> Response:
    """Send the request to the engine, and its answer back."""
    target = target_of(request)
    if gateway.passing.n >= gateway.settings.max_in_flight:
        message = f"at most {gateway.settings.max_in_flight} requests may be passed on at once: try again"
        raise Problem(429, message, code="too_many_requests", headers={"Retry-After": "1"})
    return PassedResponse(request, target, gateway.upstream.require(), gateway.upstream, gateway.passing)


for _path in ("/v1/{path:path}", *PATHS):
    router.add_api_route(_path, pass_on, methods=METHODS, response_class=Response, name=f"pass {_path}")
