"""Metrics of the engine's own server (vLLM's `/metrics`), which follow the gateway's."""

from __future__ import annotations

import asyncio
import logging

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from actscope.gateway.upstream.controls import FAILURES
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.sse import read_whole

_log = logging.getLogger(__name__)

#: Time for the engine's answer, and its largest size.
DEADLINE_SECONDS = 2.0
_MOST_BYTES = 16 << 20


async def engine_families(engine: EngineConnection) -> list[Metric] | None:
    """Return the families of `/metrics` of the engine's server; None if it has none or does not answer in time.

    They are asked for in the older text format: vLLM 0.33 writes other names in OpenMetrics.
    """
    try:
        async with asyncio.timeout(DEADLINE_SECONDS), engine.in_use():
            response = await engine.endpoint.send("GET", "/metrics", headers={"accept": "text/plain"})
            async with response:
                if response.status != 200:
                    return None
                text = (await read_whole(response, _MOST_BYTES)).decode(errors="replace")
    except FAILURES as error:
        _log.debug("the engine's metrics are left out: %s", error or type(error).__name__)
        return None
    return await asyncio.to_thread(_parsed, text)


def _parsed(text: str) -> list[Metric] | None:
    try:
        return [family for family in text_string_to_metric_families(text) if family.samples]
    except ValueError as error:
        _log.warning("the engine's metrics are left out: they cannot be read: %s", error)
        return None
