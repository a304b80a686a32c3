"""All metrics of a gateway."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric

from actscope.counters import CounterReport
from actscope.errors import RingError
from actscope.gateway.counters.reports import counter_families
from actscope.gateway.scores.matcher import Matcher
from actscope.gateway.scores.replica import RingPart
from actscope.ring.discovery import EngineCard
from actscope.runtime.process import Process
from actscope.serving.telemetry.gpus import Gpus
from actscope.serving.telemetry.processes import ShownProcess, process_families


@dataclass(frozen=True, slots=True)
class GatewayState:
    """What a scrape shows of a gateway, collected on its event loop.

    Attributes:
        reports: All counters.
        engine_is_up: Whether the gateway is connected to an engine.
        matcher: Reader of the engine's rings; None without an engine.
        in_flight: Requests in flight by kind.
    """

    reports: Sequence[CounterReport]
    engine_is_up: bool
    matcher: Matcher | None
    in_flight: Mapping[str, int]


def gateway_families(state: GatewayState, gpus: Gpus) -> Iterator[Metric]:
    """Yield the families of a gateway besides those of its logs: counters, requests, rings, probes, processes and GPUs."""
    yield from counter_families(state.reports, engine_is_up=state.engine_is_up)
    yield _in_flight(state.in_flight)
    parts = [part for replica in state.matcher.replicas for part in replica.parts] if state.matcher else []
    yield from _rings(parts)
    yield from _probes(state.matcher)
    yield from process_families([ShownProcess("gateway", os.getpid()), *_engines(part.card for part in parts)])
    yield from gpus.families()


def _in_flight(numbers: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(
        "actscope_gateway_in_flight",
        "Requests in flight: completions, forwarded requests, and streams of events.",
        labels=("kind",),
    )
    for kind, n in numbers.items():
        family.add_metric((kind,), n)
    return family


def _rings(parts: Sequence[RingPart]) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "actscope_ring_lag_steps",
        "Passes that the engine has published and the gateway has not read yet.",
        labels=("engine", "part"),
    )
    room = GaugeMetricFamily(
        "actscope_ring_rows_capacity",
        "Rows that the ring holds; a reader that is further behind misses some.",
        labels=("engine", "part"),
    )
    for part in parts:
        labels = (part.card.id, str(part.card.part))
        try:
            lag.add_metric(labels, max(part.reader.published - part.reader.next_step, 0))
        except RingError:
            continue  # closed or damaged: counted as match_damaged_rings
        room.add_metric(labels, part.reader.spec.row_capacity)
    yield lag
    yield room


def _probes(matcher: Matcher | None) -> Iterator[Metric]:
    columns = matcher.table.columns if matcher else None
    loaded = GaugeMetricFamily(
        "actscope_probe_info",
        "1 for each loaded probe; `since` is the generation in which it was put.",
        labels=("probe", "site", "since"),
    )
    threshold = GaugeMetricFamily("actscope_probe_threshold", "Threshold of the probe.", labels=("probe",))
    for i, probe in enumerate(columns.ids if columns else ()):
        assert columns is not None
        loaded.add_metric((probe, columns.sites[i], str(columns.since[i])), 1)
        bound = columns.thresholds[i]
        if bound is not None:
            threshold.add_metric((probe,), bound)
    yield loaded
    yield threshold


def _engines(cards: Iterable[EngineCard]) -> Iterator[ShownProcess]:
    for card in cards:
        process = Process(card.pid, card.pid_start)
        if process.visible and process.alive():
            yield ShownProcess("engine", card.pid, card.id, card.part)
