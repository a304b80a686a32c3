"""The ASGI application: routes, error handlers, access control, lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute

from actscope._version import __version__
from actscope.gateway.api.dependencies import Gateway
from actscope.gateway.api.events import OpenStreams
from actscope.gateway.api.openapi import describe
from actscope.gateway.api.routes import conversations, openai, proxied, recording, scope, telemetry
from actscope.gateway.api.static_page import install_page
from actscope.gateway.counters.answers import AnswerCounter
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.settings import STATIC, GatewaySettings
from actscope.gateway.telemetry.observer import LogObserver
from actscope.gateway.telemetry.tracing import Tracing, open_tracing
from actscope.gateway.upstream.upstream import Upstream
from actscope.near_miss import hinted
from actscope.serving.access import Guard
from actscope.serving.errors import install_handlers

_DESCRIPTION = "OpenAI-compatible completions with live probe scores; see docs/wire.md."


@hinted
def create_app(
    settings: GatewaySettings,
    upstream: Upstream | None = None,
    *,
    page: Path = STATIC,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Create the gateway as an ASGI application. Its lifespan opens the upstream at start and closes it at the end.

    Args:
        settings: Settings of the gateway. `port` must be the port that clients use: `Host` and the cookie are checked
            against it.
        upstream: The engine behind the gateway. None: the one that `settings.upstream` names.
        page: Directory of the built page. Without an index.html in it, `/` says how to build the page.
        tracing: Takes the spans and metrics of requests. None: what `settings.otlp_endpoint` names. The application closes it.

    Returns:
        The application, protected by `actscope.serving.access.Guard`.
    """
    observer = LogObserver()
    sessions, streams = Sessions(settings, observer.ended), OpenStreams(settings.max_streams)
    tracing = tracing or open_tracing(settings.otlp_endpoint)
    gateway = Gateway(settings, upstream or Upstream(settings), sessions, streams, observer=observer, tracing=tracing)
    app = FastAPI(
        title="actscope gateway",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.gateway = gateway
    install_handlers(app)
    app.include_router(openai.router)
    app.include_router(conversations.router)
    app.include_router(scope.router)
    app.include_router(recording.router)
    app.include_router(telemetry.router)
    app.include_router(proxied.router)
    install_page(app, page)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(AnswerCounter, counts=gateway.answers)  # around the guard, to count what that turns away
    describe(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    await gateway.upstream.open(gateway.sessions)
    tasks = [asyncio.create_task(work) for work in (gateway.counters.tell_always(), gateway.observer.keep_up())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        gateway.streams.end_all()
        await gateway.upstream.close()
        if gateway.tracing is not None:
            await asyncio.to_thread(gateway.tracing.close)


def _operation_id(route: APIRoute) -> str:
    """Return the route's name in camel case (`list_probes` becomes `listProbes`), for generated TypeScript clients."""
    first, *rest = route.name.split("_")
    return first + "".join(word.title() for word in rest)
