"""The answer to a scrape: families of metrics in Prometheus' text format, or in OpenMetrics for clients that accept it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector
from starlette.responses import Response

OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"

#: Suffixes that samples of a family have, by its type. Two families must not share the name of a sample.
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("", "_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def distinct(families: Iterable[Metric]) -> list[Metric]:
    """Return the families whose names, and names of samples, no earlier family has. Later ones are left out."""
    taken, kept = set[str](), list[Metric]()
    for family in families:
        names = {family.name, *(family.name + suffix for suffix in _SUFFIXES.get(family.type, ("",)))}
        if taken.isdisjoint(names):
            taken |= names
            kept.append(family)
    return kept


def rendered(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """Return families as text, without those that would be defined twice, and the text's media type.

    Args:
        families: In the order in which they are shown.
        accept: The client's `Accept` header. Exemplars are part of OpenMetrics only (`application/openmetrics-text`).
    """
    collector = _Families(distinct(families))
    if not any(one.partition(";")[0].strip() == OPENMETRICS for one in accept.split(",")):
        return plain_text(collector), CONTENT_TYPE_PLAIN_0_0_4
    # Any other escaping writes the colons in the names of samples, such as vLLM's, as underscores (prometheus_client 0.26).
    text: bytes = openmetrics_text(collector, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
    return text, _OPENMETRICS_TYPE


async def scrape_response(collect: Callable[[], Iterable[Metric]], accept: str) -> Response:
    """Return the response to a scrape. `collect` and the formatting run on another thread, not on the event loop."""
    text, media_type = await asyncio.to_thread(lambda: rendered(collect(), accept))
    return Response(text, headers={"content-type": media_type})


def one_of(name: str, help: str, label: str, states: Iterable[str], now: str) -> GaugeMetricFamily:
    """Return a gauge with a sample for each state: 1 for the present one, 0 for the others."""
    family = GaugeMetricFamily(name, help, labels=(label,))
    for state in states:
        family.add_metric((state,), state == now)
    return family
