"""What the kernel saw, in a trace: threads of engines that were held up, block devices, page faults and pressure.

Measurements are sums over intervals, so a slice is as long as its interval, and says how much of it was what.
"""

from __future__ import annotations

from collections.abc import Sequence

from actscope.metrics.lines import DeviceLatency, IoLine, Pressure, SystemLine, ThreadWaits
from actscope.metrics.text import quantile_us
from actscope.metrics.timeline.answer import AnsweredToken
from actscope.metrics.timeline.kernel import HELD_UP
from actscope.metrics.timeline.sentence import milliseconds
from actscope.metrics.trace.events import Shown, TraceEvent, TraceEvents

#: Share of an interval from which on a thread counts as held up.
_LEAST_SHARE = 0.005


def add_system(events: TraceEvents, lines: Sequence[SystemLine]) -> list[TraceEvent]:
    """Add lines of one boot, in the order of time. Returns the slices of threads of engines that were held up."""
    held = []
    for line in lines:
        start, end = _interval(line)
        for pid, process in line.processes.items():
            for tid, thread in process.threads.items() if process.found_as else ():
                track = events.thread(int(pid), int(tid), thread.name)
                events.process(int(pid), f"{process.name} ({process.found_as})")
                slice_ = _held_slice(events, track, thread, start, end)
                held += [slice_] if slice_ is not None else []
                if thread.page_faults:
                    faults = events.track("page faults", track, unit="faults")
                    events.counter(faults, start, thread.page_faults)
        for resource, shares in line.pressure.items():
            some = shares.get("some") if isinstance(shares, dict) else None
            value = some.avg10 if isinstance(some, Pressure) else some.get("avg10") if isinstance(some, dict) else None
            if isinstance(value, int | float):
                events.counter(events.track(resource, events.track("pressure (PSI, avg10)"), unit="%"), end, value)
    return held


def _held_slice(events: TraceEvents, track: int, thread: ThreadWaits, start_ns: int, end_ns: int) -> TraceEvent | None:
    """Add what held a thread up in an interval, if that was more than half a percent of it."""
    causes = {cause: ns for cause, ns in thread.off_cpu_ns.items() if cause in HELD_UP and ns}
    if sum(causes.values()) < _LEAST_SHARE * (end_ns - start_ns):
        return None
    longest = sorted(causes, key=lambda cause: -causes[cause])
    name = ", ".join(f"{cause} {milliseconds(causes[cause])}" for cause in longest)
    shown: dict[str, Shown] = {f"{cause}_ns": ns for cause, ns in thread.off_cpu_ns.items()}
    for waker in thread.woken_by[:1]:
        shown["woken_by"] = f"{waker.name} ({waker.pid})"
    return events.slice(events.track("off the CPU", track), start_ns, end_ns, name, shown)


def add_io(events: TraceEvents, lines: Sequence[IoLine]) -> None:
    """Add lines of one boot, in the order of time."""
    home = events.track("block devices")
    for line in lines:
        start, end = _interval(line)
        recorded = {name for one in line.recordings for name in one.devices}
        depth = {one.device_name: one.count for one in line.inflight}
        for one in line.latency_histogram:
            name = f"{one.device_name} {one.label}".rstrip() + (" (recording)" if one.device_name in recorded else "")
            track = events.track(name, home)
            if one.total:
                events.slice(track, start, end, _requests(one), _device(one, depth.get(one.device_name)))
            if one.device_name in depth:
                in_flight = events.track("in flight", track, unit="requests")
                events.counter(in_flight, end, depth[one.device_name])


def _requests(one: DeviceLatency) -> str:
    kinds = (
        ", ".join(f"{totals.count:,} {kind}" for kind, totals in one.operations.items()) or f"{one.total:,} requests"
    )
    return f"{kinds}, p99 at most {quantile_us(one.buckets, 0.99):,} µs" if one.buckets else kinds


def _device(one: DeviceLatency, in_flight: int | None) -> dict[str, Shown]:
    shown: dict[str, Shown] = {"requests": one.total, "source": one.source}
    if in_flight is not None:
        shown["in_flight_at_end"] = in_flight
    if one.mean_in_flight is not None:
        shown["mean_in_flight"] = one.mean_in_flight
    for kind, totals in one.operations.items():
        shown |= {f"{kind}.count": totals.count, f"{kind}.bytes": totals.bytes, f"{kind}.latency_us": totals.latency_us}
    return shown | {f"{bucket.bucket_low}..{bucket.bucket_high} µs": bucket.count for bucket in one.buckets}


def _interval(line: IoLine | SystemLine) -> tuple[int, int]:
    """Return begin and end of a line's interval on CLOCK_MONOTONIC."""
    return max(line.monotonic_ns - round(line.interval_s * 1e9), 0), line.monotonic_ns


def join_tokens(
    events: TraceEvents, held: Sequence[TraceEvent], tokens: Sequence[tuple[AnsweredToken, TraceEvent]]
) -> None:
    """Draw an arrow from each time in which a thread of an engine was held up to the slowest token that came of it.

    That is the token with the longest gap among those whose gap overlaps the interval.
    """
    ordered = sorted(tokens, key=lambda pair: pair[1].start_ns)
    for one in held:
        over = [(token.gap_ns, i) for i, (token, _) in enumerate(ordered) if _overlaps(one, token)]
        if over:
            events.flow(one, ordered[max(over)[1]][1])


def _overlaps(one: TraceEvent, token: AnsweredToken) -> bool:
    return token.start_ns < one.end_ns and token.end_ns > one.start_ns
