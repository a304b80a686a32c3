"""Meters: measure since the last call, by the best way that works here, and say what is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

from actscope.errors import MetricsError
from actscope.metrics.cost import CostMeter
from actscope.metrics.found import FoundProcess, found_processes, recording_devices
from actscope.metrics.io_lines import io_line
from actscope.metrics.lines import IoLine, Pressures, SystemLine
from actscope.metrics.settings import WaitSettings
from actscope.metrics.sources.blockio import BpfIo, IoSource, ProcIo
from actscope.metrics.sources.devices import BlockDevices
from actscope.metrics.sources.kernel import explained, kernel_has, why_no_programs
from actscope.metrics.sources.offcpu import BpfSystem
from actscope.metrics.sources.perfio import PerfIo
from actscope.metrics.sources.pressure import cgroup_pressure, machine_pressure
from actscope.metrics.sources.threads import ProcSystem, SystemSource
from actscope.metrics.system_lines import system_line

_log = logging.getLogger(__name__)
Wanted = Literal["auto", "bpf", "perf", "proc"]
S = TypeVar("S", bound=IoSource | SystemSource)
#: Intervals between two searches for the model's processes.
_SEARCH_EVERY = 12


class IoMeter:
    """Measures block I/O at intervals.

    Args:
        source: bpf, perf, proc, or the best that works here.
        cost: Measure what this costs.

    Raises:
        MetricsError: `source` is bpf or perf and that does not work here. Says why.
    """

    def __init__(self, source: Wanted = "auto", *, cost: bool = False) -> None:
        self._devices = BlockDevices()
        self._source: IoSource
        self._source, lacks = _best(
            source,
            lambda: BpfIo(self._devices),
            ProcIo,
            why_no_programs("actscope metrics io"),
            "actscope metrics io",
            PerfIo,
        )
        what = "latencies of flushes, discards and partitions" if self._source.rung == "perf" else "latency histograms"
        self.missing = [f"{what}: {lacks}"] if lacks else []
        self._cost = CostMeter(getattr(self._source, "loaded", None)) if cost else None
        self._found = _Search()
        self._last = self._source.snapshot()

    def measure(self) -> IoLine:
        """Return the line since the last call. Raises MetricsError if the kernel's counts cannot be read."""
        now = self._source.snapshot()
        line = io_line(self._last, now, self._source.rung, self._devices)
        self._last = now
        return msgspec.structs.replace(
            line,
            missing=self.missing,
            recordings=recording_devices(self._found.processes(), self._devices),
            cost=self._cost.measure() if self._cost else None,
        )

    def close(self) -> None:
        """Detach from the kernel. Idempotent."""
        self._source.close()


class SystemMeter:
    """Measures page faults, off-CPU time and pressure at intervals.

    Args:
        source: bpf, proc, or the best that works here.
        waits: What is measured of processes.
        cost: Measure what this costs.

    Raises:
        MetricsError: `source` is bpf and that does not work here, or perf, or there is no such process. Says why.
    """

    def __init__(self, source: Wanted = "auto", waits: WaitSettings | None = None, *, cost: bool = False) -> None:
        self._waits = waits or WaitSettings()
        pids = self._waits.pid
        gone = [pid for pid in pids if not os.path.exists(f"/proc/{pid}")]
        if gone:
            raise MetricsError(f"--pid {gone[0]}: there is no such process")
        self._found = _Search()
        self._source: SystemSource
        self._source, lacks = _best(
            source,
            lambda: BpfSystem(self._watched(), only_watched=bool(pids), stacks_over_ms=self._waits.stacks_over),
            lambda: ProcSystem(pids or None),
            why_no_programs("actscope metrics system", needs_pids=True),
            "actscope metrics system",
        )
        self.missing = [f"off-CPU time by cause, and who woke whom: {lacks}"] if lacks else []
        if not lacks and self._source.rung == "bpf" and not kernel_has("page_fault_user"):
            self.missing.append(
                "page faults: this kernel has no tracepoint page_fault_user: actscope metrics system --source proc"
            )
        self._pressure_reason = ""
        self._cost = CostMeter(getattr(self._source, "loaded", None)) if cost else None
        self._last = self._source.snapshot()

    def measure(self) -> SystemLine:
        """Return the line since the last call. Raises MetricsError if the kernel's counts cannot be read."""
        watched = self._watched()
        self._source.watch(watched)
        now = self._source.snapshot()
        pressure, lacks = machine_pressure()
        line = system_line(self._last, now, self._source.rung, watched, pressure, _groups(watched), self._source.stack)
        self._last = now
        return msgspec.structs.replace(
            line,
            missing=[*self.missing, *([lacks] if lacks else [])],
            cost=self._cost.measure() if self._cost else None,
        )

    def _watched(self) -> dict[int, str]:
        """Return the processes whose threads are named, with what they are."""
        found = {one.pid: one.what for one in self._found.processes()}
        pids = self._waits.pid
        return {pid: found.get(pid, "") for pid in pids} if pids else found

    def close(self) -> None:
        """Detach from the kernel. Idempotent."""
        self._source.close()


def _groups(pids: dict[int, str]) -> dict[str, Pressures]:
    return {path: pressure for path, pressure in map(cgroup_pressure, pids) if path}


def _best(
    wanted: Wanted,
    programs: Callable[[], S],
    proc: Callable[[], S],
    reason: str,
    command: str,
    perf: Callable[[], S] | None = None,
) -> tuple[S, str]:
    """Return the source to use, and why it is not the best one ("" if it is, or if it was asked for).

    The ladder is bpf, perf, proc.
    """
    if wanted == "proc":
        return proc(), ""
    if wanted == "perf":
        if perf is None:
            raise MetricsError(f"--source perf: expected bpf or proc of `{command}`, which does not read tracepoints")
        try:
            return perf(), ""
        except MetricsError as error:
            raise MetricsError(f"--source perf: {error}") from error
    if not reason:
        try:
            return programs(), ""
        except MetricsError as error:
            reason = explained(error, command)
    if wanted == "bpf":
        raise MetricsError(f"--source bpf {reason}")
    if perf is not None:
        try:
            return perf(), reason
        except MetricsError as error:
            _log.debug("perf: %s", error)
    return proc(), reason


class _Search:
    """The model's processes, searched for now and then."""

    def __init__(self) -> None:
        self._calls = 0
        self._last: list[FoundProcess] = []

    def processes(self) -> list[FoundProcess]:
        """Return the processes, at most some intervals old."""
        if self._calls % _SEARCH_EVERY == 0:
            self._last = found_processes()
        self._calls += 1
        return self._last
