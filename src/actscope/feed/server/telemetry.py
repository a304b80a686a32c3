"""Prometheus metrics of the feed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, cast

from fastapi import APIRouter, Header, Request
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response

from actscope._version import __version__
from actscope.feed.answers import GeneratorFacts, GroupFacts, SiteScale
from actscope.feed.buffer.allocator import State
from actscope.feed.server.service import Service
from actscope.serving.settings import SCRAPED
from actscope.serving.telemetry.exposition import one_of, scrape_response
from actscope.serving.telemetry.gpus import Gpus
from actscope.serving.telemetry.processes import ShownProcess, process_families

_STATES = ("loading", "filling", "serving", "ended", "failed")
_COUNTS = {
    "filled_rows": "Rows that the generator has put into the buffer.",
    "filled_windows": "Windows that the generator has filled.",
    "granted_rows": "Rows that consumers were granted; each is delivered, abandoned, or held.",
    "delivered_rows": "Rows that reached their consumers.",
    "abandoned_rows": "Rows whose consumer disconnected, fell silent, or gave them back.",
    "refreshed_rows": "Ready rows that a refresh has dropped.",
    "refills": "Windows that were filled again, because the generator had failed in the middle.",
    "expired_leases": "Consumers that lost their rows, because they gave no sign of life.",
    "forgotten_groups": "Groups that were removed, because they blocked a window that another one waited for.",
}


@dataclass(frozen=True, slots=True)
class FeedState:
    """What a scrape shows of a feed, collected on its event loop."""

    state: str
    counts: Mapping[str, int]
    gauges: Mapping[str, float]
    windows: list[str]
    groups: Mapping[str, GroupFacts]
    sites: Mapping[str, SiteScale]
    generator: GeneratorFacts


router = APIRouter()


@router.get(
    SCRAPED,
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}
    },
)
async def scrape(
    request: Request,
    accept: Annotated[str, Header(description="`application/openmetrics-text` for OpenMetrics")] = "",
) -> Response:
    """Return the metrics of the feed for Prometheus. The token of scrapers opens it too."""
    state, gpus = _state(request.app.state.service), request.app.state.gpus
    return await scrape_response(lambda: feed_families(state, gpus), accept)


def _state(feed: Service) -> FeedState:
    buffer = feed.broker.buffer
    return FeedState(
        feed.state,
        asdict(buffer.counts),
        {
            "ready_rows": buffer.available(""),
            "held_rows": buffer.held_rows,
            "window_rows": feed.settings.window_rows,
            "memory_bytes": feed.broker.memory.layout.total_bytes if feed.broker.memory else 0,
            "consumers": feed.n_consumers,
            "requests_in_flight": feed.in_flight,
        },
        [str(window["state"]) for window in buffer.windows()],
        cast(dict[str, GroupFacts], buffer.groups()),
        {name: one.summary() for name, one in feed.broker.statistics.items()},
        feed.generator_stats(),
    )


_GAUGES = {
    "ready_rows": "Rows that a new group could claim now.",
    "held_rows": "Rows that consumers hold.",
    "window_rows": "Rows of a window.",
    "memory_bytes": "Shared memory of the buffer, in bytes.",
    "consumers": "Connected consumers on the same machine.",
    "requests_in_flight": "Requests for rows in progress.",
}


def feed_families(state: FeedState, gpus: Gpus) -> Iterator[Metric]:
    """Yield all families of a feed."""
    build = GaugeMetricFamily("actscope_feed_build_info", "Version of the feed.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build
    yield one_of("actscope_feed_state", "State of the feed: 1 for the present one.", "state", _STATES, state.state)
    for name, help in _COUNTS.items():
        yield CounterMetricFamily(f"actscope_feed_{name}", help, value=state.counts[name])
    for name, help in _GAUGES.items():
        yield GaugeMetricFamily(f"actscope_feed_{name}", help, value=state.gauges[name])
    windows = GaugeMetricFamily("actscope_feed_windows", "Windows of the buffer by state.", labels=("state",))
    for kind in State:
        windows.add_metric((kind.value,), state.windows.count(kind.value))
    yield windows
    yield from _groups(state.groups)
    yield from _sites(state.sites)
    yield from _generator(state.generator)
    processes = [ShownProcess("feed", os.getpid())]
    if (pid := state.generator["pid"]) is not None:
        processes.append(ShownProcess("generator", pid))
    yield from process_families(processes)
    yield from gpus.families()


def _groups(groups: Mapping[str, GroupFacts]) -> Iterator[Metric]:
    """Yield the families of the groups, of which there are at most `max_groups` at once."""
    ready = GaugeMetricFamily(
        "actscope_feed_group_ready_rows", "Rows that the group could claim now.", labels=("group",)
    )
    rows = CounterMetricFamily("actscope_feed_group_rows", "Rows that the group was granted.", labels=("group",))
    missed = CounterMetricFamily(
        "actscope_feed_group_missed_rows", "Rows that were replaced before the group received them.", labels=("group",)
    )
    for name, facts in groups.items():
        ready.add_metric((name,), facts["ready_rows"])
        rows.add_metric((name,), facts["rows"])
        missed.add_metric((name,), facts["missed_rows"])
    yield from (ready, rows, missed)


def _sites(sites: Mapping[str, SiteScale]) -> Iterator[Metric]:
    norm = GaugeMetricFamily("actscope_feed_site_mean_norm", "Mean L2 norm of the site's rows.", labels=("site",))
    for name, facts in sites.items():
        norm.add_metric((name,), facts["mean_norm"])
    yield norm


def _generator(facts: GeneratorFacts) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "actscope_feed_generator_restarts", "Times that the generator has failed.", value=facts["restarts"]
    )
    help = "Rows that the generator makes in a second."
    yield GaugeMetricFamily("actscope_feed_generator_rows_per_second", help, value=facts["rows_per_second"])
    help = "Share of padding among the tokens that the model reads, 0 to 1."
    yield GaugeMetricFamily("actscope_feed_generator_padding_ratio", help, value=facts["padding"])
