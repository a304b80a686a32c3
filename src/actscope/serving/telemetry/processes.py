"""CPU time, memory and files of processes, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector

_HELP = {
    "cpu_seconds": "User and system CPU time that the process has used, in seconds.",
    "resident_memory_bytes": "Resident memory of the process, in bytes.",
    "virtual_memory_bytes": "Virtual memory of the process, in bytes.",
    "start_time_seconds": "Start of the process, in seconds since 1970.",
    "open_fds": "Files that the process has open.",
    "max_fds": "Files that the process may open.",
}


@dataclass(frozen=True, slots=True)
class ShownProcess:
    """A process of a server.

    Attributes:
        name: What it does: `gateway`, `engine`, `feed`, `generator`.
        pid: Its id.
        engine: Card id of the engine that it belongs to, or "".
        part: Index of the part of the engine (pipeline stage).
    """

    name: str
    pid: int
    engine: str = ""
    part: int = 0


def process_families(processes: Iterable[ShownProcess]) -> list[Metric]:
    """Return `actscope_process_…` of these processes. One that has ended, or may not be read, is left out."""
    found: dict[str, Metric] = {}
    for one in processes:
        labels = {"process": one.name, "engine": one.engine, "part": str(one.part)}
        for metric in ProcessCollector("actscope", lambda one=one: one.pid, registry=None).collect():  # type: ignore[misc]
            short = metric.name.removeprefix("actscope_process_")
            family = found.setdefault(
                metric.name, Metric(metric.name, _HELP.get(short, metric.documentation), metric.type)
            )
            family.samples += (sample._replace(labels=labels) for sample in metric.samples)
    return list(found.values())
