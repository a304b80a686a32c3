"""Lines of measurements as arrays over time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actscope.metrics.lines import DeviceLatency, IoLine, LatencyBucket, Pressure, SystemLine
from actscope.metrics.text import quantile_us

#: Causes for which a process is held up. Idle ones wait for locks, for others and for time.
HELD = ("runnable", "io", "fault")
#: Cause of the waits in files that name none.
UNNAMED = "off the CPU"
_MOST_DEVICES, _MOST_PROCESSES = 6, 8
_AVG10 = re.compile(r"some [^\n]*?avg10=([\d.]+)")

#: Wall time of a line, in seconds since the epoch.
LineClock = Callable[[IoLine | SystemLine], float]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSeries:
    """One block device over n intervals.

    Attributes:
        name: The kernel's name.
        label: Name that a person knows, or "".
        ends: End of each interval, wall seconds, float64 [n].
        seconds: Length of each interval, float64 [n].
        counts: Requests by interval and slot, int64 [n, slots]; slot s has latencies of about 2**s µs.
        requests: Requests that ended in each interval, int64 [n].
        in_flight: Requests in the device at the end of each interval, float64 [n]; NaN where it is not known.
        mean_in_flight: Mean of the interval, float64 [n]; NaN where it is not known.
        p50_us: Upper end of the bucket of the median over all intervals, in µs; 0 without latencies.
        p99_us: The same of the 99th percentile.
    """

    name: str
    label: str
    ends: np.ndarray
    seconds: np.ndarray
    counts: np.ndarray
    requests: np.ndarray
    in_flight: np.ndarray
    mean_in_flight: np.ndarray
    p50_us: int
    p99_us: int


@dataclass(frozen=True, slots=True, eq=False)
class SystemSeries:
    """Processes and pressure over n intervals.

    Attributes:
        ends: End of each interval, wall seconds, float64 [n].
        pressure: Share of the last 10 s in which some task waited, in percent, by resource: float64 [n], NaN where not known.
        held: Seconds off the CPU for each second, by cause and summed over the shown processes: float64 [n].
        faults: User page faults in a second, by process: float64 [n].
        waits: Total seconds by process and cause.
        fault_totals: Total page faults by process.
    """

    ends: np.ndarray
    pressure: Mapping[str, np.ndarray]
    held: Mapping[str, np.ndarray]
    faults: Mapping[str, np.ndarray]
    waits: Mapping[str, Mapping[str, float]]
    fault_totals: Mapping[str, float]


def device_series(lines: Sequence[IoLine], clock: LineClock, first: frozenset[str] = frozenset()) -> list[DeviceSeries]:
    """Return the devices named in `first`, then those with the most requests, busiest first; at most six."""
    totals: Counter[str] = Counter()
    for line in lines:
        for one in line.latency_histogram:
            totals[one.device_name] += one.total
        for waiting in line.inflight:
            totals[waiting.device_name] += 0
    names = sorted(totals, key=lambda name: (name not in first, -totals[name], name))
    return [_device(name, lines, clock) for name in names[:_MOST_DEVICES]]


def _device(name: str, lines: Sequence[IoLine], clock: LineClock) -> DeviceSeries:
    found: list[DeviceLatency | None] = [
        next((one for one in line.latency_histogram if one.device_name == name), None) for line in lines
    ]
    buckets = [bucket for one in found if one for bucket in one.buckets]
    slots = 1 + min(max((bucket.slot for bucket in buckets), default=0), 63)
    counts = np.zeros((len(lines), slots), np.int64)
    for i, one in enumerate(found):
        for bucket in one.buckets if one else ():
            if 0 <= bucket.slot < slots:
                counts[i, bucket.slot] += bucket.count
    in_flight = [next((float(w.count) for w in line.inflight if w.device_name == name), np.nan) for line in lines]
    mean = [np.nan if one is None or one.mean_in_flight is None else one.mean_in_flight for one in found]
    merged = _merged(buckets)
    return DeviceSeries(
        name,
        next((one.label or one.kind for one in found if one and (one.label or one.kind)), ""),
        np.array([clock(line) for line in lines]),
        np.array([max(line.interval_s, 1e-9) for line in lines]),
        counts,
        np.array([one.total if one else 0 for one in found], np.int64),
        np.array(in_flight),
        np.array(mean, np.float64),
        quantile_us(merged, 0.5),
        quantile_us(merged, 0.99),
    )


def _merged(buckets: Sequence[LatencyBucket]) -> list[LatencyBucket]:
    counts, ends = Counter[int](), dict[int, tuple[int, int]]()
    for one in buckets:
        counts[one.slot] += one.count
        ends[one.slot] = (one.bucket_low, one.bucket_high)
    return [LatencyBucket(slot, counts[slot], *ends[slot]) for slot in sorted(counts)]


def system_series(lines: Sequence[SystemLine], clock: LineClock) -> SystemSeries:
    """Return pressure, and the processes that were held up longest or had the most page faults."""
    waits: dict[str, Counter[str]] = defaultdict(Counter)
    faults: Counter[str] = Counter()
    for line in lines:
        for name, causes in _waits_of(line).items():
            waits[name].update(causes)
        faults.update(_faults_of(line))
    shown = sorted(waits, key=lambda name: -_held_up(waits[name]))[:_MOST_PROCESSES]
    faulting = [name for name, _ in faults.most_common(_MOST_PROCESSES)]
    seconds = np.array([max(line.interval_s, 1e-9) for line in lines])
    held_for = [cause for cause in (*HELD, UNNAMED) if any(waits[name][cause] for name in shown)]
    per_line = [_waits_of(line) for line in lines]
    resources = sorted({resource for line in lines for resource in line.pressure})
    return SystemSeries(
        np.array([clock(line) for line in lines]),
        {resource: np.array([_avg10(line.pressure.get(resource)) for line in lines]) for resource in resources},
        {
            cause: np.array([sum(one.get(name, {}).get(cause, 0.0) for name in shown) for one in per_line]) / seconds
            for cause in held_for
        },
        {name: np.array([_faults_of(line).get(name, 0.0) for line in lines]) / seconds for name in faulting[:5]},
        {name: dict(waits[name]) for name in shown},
        {name: faults[name] for name in faulting},
    )


def _held_up(causes: Mapping[str, float]) -> float:
    return sum(causes.get(cause, 0.0) for cause in (*HELD, UNNAMED))


def _waits_of(line: SystemLine) -> dict[str, dict[str, float]]:
    """Return seconds off the CPU by process and cause."""
    if line.processes:
        return {
            f"{one.name} ({pid})": {cause: ns / 1e9 for cause, ns in one.off_cpu_ns.items()}
            for pid, one in line.processes.items()
        }
    return {pid: {UNNAMED: ns / 1e9} for pid, ns in line.off_cpu_ns.items()}


def _faults_of(line: SystemLine) -> dict[str, float]:
    names = {pid: f"{one.name} ({pid})" for pid, one in line.processes.items()}
    return {names.get(pid, pid): float(n) for pid, n in line.page_faults.items()}


def _avg10(pressure: object) -> float:
    """Return avg10 of `some`, of our lines and of those that hold the kernel's text; NaN if there is none."""
    some = pressure.get("some") if isinstance(pressure, dict) else None
    value = some.avg10 if isinstance(some, Pressure) else some.get("avg10") if isinstance(some, dict) else None
    if isinstance(pressure, str) and (found := _AVG10.search(pressure)):
        value = float(found[1])
    return float(value) if isinstance(value, int | float) else np.nan
