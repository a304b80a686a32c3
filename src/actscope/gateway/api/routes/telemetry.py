"""Routes that Prometheus scrapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Header, Query
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.responses import Response

from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.routes.openai import ERRORS, Responses
from actscope.gateway.telemetry.engine_metrics import engine_families
from actscope.gateway.telemetry.families import GatewayState, gateway_families
from actscope.serving.settings import SCRAPED
from actscope.serving.telemetry.exposition import scrape_response

router = APIRouter(tags=["actscope"], responses=ERRORS)

_TEXT: Responses = {
    200: {
        "description": "Families in Prometheus' text format, or in OpenMetrics with exemplars if `Accept` has "
        "`application/openmetrics-text`",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
}

Accept = Annotated[str, Header(description="`application/openmetrics-text` for OpenMetrics")]


@router.get(SCRAPED, response_class=Response, responses=_TEXT)
async def get_scrape(
    gateway: Here,
    accept: Accept = "",
    engine: Annotated[bool, Query(description="add the metrics of the engine's own server, if it has any")] = True,
) -> Response:
    """Return the metrics of the gateway, then those of the engine's own server. The token of scrapers opens it too."""
    ours, theirs = await asyncio.gather(_own(gateway), _engines(gateway) if engine else _nothing())
    return await scrape_response(lambda: [*ours, *theirs], accept)


@router.get("/v1/actscope/metrics", response_class=Response, responses=_TEXT)
async def get_metrics(gateway: Here, accept: Accept = "") -> Response:
    """Return the metrics of the gateway alone."""
    ours = await _own(gateway)
    return await scrape_response(lambda: ours, accept)


async def _own(gateway: Gateway) -> list[Metric]:
    engine = gateway.upstream.engine
    in_flight = {
        "completion": gateway.sessions.n_in_flight,
        "forwarded": gateway.passing.n,
        "events": len(gateway.streams),
    }
    observed = await gateway.observer.families(gateway.sessions)
    state = GatewayState(
        await gateway.counters.all(), engine is not None, engine.matcher if engine else None, in_flight
    )
    return [*observed, *await asyncio.to_thread(lambda: list(gateway_families(state, gateway.gpus)))]


async def _engines(gateway: Gateway) -> Iterable[Metric]:
    """Return the metrics of the engine's server, after a gauge that says whether they are there."""
    engine = gateway.upstream.engine
    found = await engine_families(engine) if engine else None
    help = "Whether the metrics of the engine's own server follow."
    return [GaugeMetricFamily("actscope_engine_metrics_up", help, value=found is not None), *(found or ())]


async def _nothing() -> Iterable[Metric]:
    return ()
