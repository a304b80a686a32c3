"""All counters of a gateway and its engine: collected, shown in `info`, as metrics, and told in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import asdict
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from actscope._version import __version__
from actscope.counters import Counter, CounterLog, CounterReport, counters_of, summed
from actscope.errors import RingError
from actscope.gateway.counters.answers import AnswerCounts
from actscope.gateway.counters.schemas import CounterSource, Trouble
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.upstream.upstream import Upstream
from actscope.ring.counter_files import PUBLISH_SECONDS, read_reports

_log = logging.getLogger(__name__)

_LABELS = ("source", "engine", "part")


@dataclass(frozen=True, slots=True)
class GatewayCounters:
    """The parts of a gateway that count."""

    upstream: Upstream
    sessions: Sessions
    answers: AnswerCounts

    def own(self) -> list[CounterReport]:
        """Return what the gateway itself has counted."""
        own = [*counters_of(self.answers), *counters_of(self.sessions.counts())]
        return [*self.upstream.reports(), CounterReport("gateway", own)]

    async def all(self) -> list[CounterReport]:
        """Return what the gateway has counted, and what the processes of its engine last published, at most 5 seconds ago."""
        engine = self.upstream.engine
        return [*self.own(), *await asyncio.to_thread(_published, engine.found.ids if engine else ())]

    async def tell_always(self) -> None:
        """Log what the gateway has lost, once a kind and at powers of ten, until cancelled. Engines log their own counters."""
        told = CounterLog(_log)
        while True:
            await asyncio.sleep(PUBLISH_SECONDS)
            told.tell(summed(self.own()))


def _published(card_ids: Sequence[str]) -> list[CounterReport]:
    try:
        return [report for card_id in card_ids for report in read_reports(card_id)]
    except (RingError, OSError) as error:
        _log.warning("the counters of the engine cannot be read: %s", error)
        return []


def sources_of(reports: Iterable[CounterReport]) -> list[CounterSource]:
    """Return reports as `info` shows them: one entry for each process and engine."""
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    for report in reports:
        values = found.setdefault((report.source, report.engine, report.part), {})
        for one in report.counters:
            values[one.name] = values.get(one.name, 0) + one.value
    return [
        CounterSource(source=source, engine=engine or None, part=part, values=values)
        for (source, engine, part), values in found.items()
    ]


def troubles_of(reports: Iterable[CounterReport]) -> list[Trouble]:
    """Return the counters above zero that tell of a loss, a doubt or a fault, each summed over all reports."""
    return [Trouble.model_validate(asdict(one)) for one in summed(reports) if one.tells]


def counter_families(reports: Sequence[CounterReport], *, engine_is_up: bool) -> Iterator[Metric]:
    """Yield one family for each name, with a sample for each process and engine.

    A counter is `actscope_<name>_total`, a current value `actscope_<name>`.
    """
    build = GaugeMetricFamily("actscope_build_info", "Version of the gateway.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build
    yield GaugeMetricFamily("actscope_engine_up", "Whether the gateway is connected to an engine.", value=engine_is_up)
    sources = sources_of(reports)
    for one in summed(reports):
        yield _family(one, sources)


def _family(one: Counter, sources: Iterable[CounterSource]) -> Metric:
    text = f"{one.help or one.name} {one.todo}".strip()
    if one.kind == "now":
        metric: GaugeMetricFamily | CounterMetricFamily = GaugeMetricFamily(
            f"actscope_{one.name}", text, labels=_LABELS
        )
    else:
        metric = CounterMetricFamily(f"actscope_{one.name}", text, labels=_LABELS)
    for source in sources:
        if one.name in source.values:
            metric.add_metric((source.source, source.engine or "", str(source.part)), source.values[one.name])
    return metric
