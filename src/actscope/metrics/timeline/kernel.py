"""What the kernel saw of engines around a gap, from lines of `actscope metrics`. It stands beside the parts.

The threads that work are those that ran most over all lines; what held one of them up is the cause of the gap, if it took a good
part of it. All others may wait without anyone waiting for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from actscope.metrics.lines import IoLine, LatencyBucket, SystemLine, ThreadWaits
from actscope.metrics.text import quantile_us
from actscope.metrics.timeline.sentence import milliseconds

#: Causes for which a thread that has work does not run, and how they read. Idle threads wait for locks and sleep.
HELD_UP = {
    "runnable": "waited for a processor",
    "io": "waited for a block device",
    "fault": "waited for a page",
    "stopped": "were stopped",
}
#: The same of one thread that works, for which a lock counts too.
_WORKER_HELD_UP = {**HELD_UP, "stopped": "was stopped", "lock": "waited for a lock"}
#: Most threads that are named.
_MOST_THREADS = 3
#: Share of what the busiest thread ran from which on a thread is one that works.
_WORKS_FROM = 0.25
#: Share of a gap from which on what held a working thread up is named as its cause.
_NAMED_FROM = 0.25

AnyLine = TypeVar("AnyLine", bound=IoLine | SystemLine)
#: A thread by the PID of its process and its own.
ThreadKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class GapSpan:
    """A gap between two tokens on CLOCK_MONOTONIC of one boot."""

    start_ns: int
    end_ns: int
    boot_id: str

    @property
    def ns(self) -> int:
        """Return its length in nanoseconds."""
        return self.end_ns - self.start_ns

    def overlap_ns(self, line: IoLine | SystemLine) -> int:
        """Return how long a line's interval and the gap overlap; 0: not at all, or it is of another boot."""
        begin = line.monotonic_ns - round(line.interval_s * 1e9)
        ns = min(line.monotonic_ns, self.end_ns) - max(begin, self.start_ns)
        return max(ns, 0) if line.boot_id == self.boot_id else 0


@dataclass(slots=True)
class HeldThread:
    """A thread of an engine around a gap: ns by cause, of each interval at most as long as it overlaps the gap."""

    pid: int
    name: str
    found_as: str
    held: Counter[str] = field(default_factory=Counter)
    ran_ns: int = 0
    faults: int = 0
    wakers: Counter[str] = field(default_factory=Counter)

    def longest(self) -> tuple[int, str]:
        """Return the longest wait that a thread which works does not choose, and its cause."""
        return max(((self.held[cause], cause) for cause in _WORKER_HELD_UP), default=(0, ""))


def lines_around(lines: Iterable[AnyLine], gap: GapSpan) -> list[AnyLine]:
    """Return the lines of the gap's boot whose interval overlaps it."""
    return [line for line in lines if gap.overlap_ns(line)]


def meanwhile(system: Sequence[SystemLine], io: Sequence[IoLine], gap: GapSpan) -> list[str]:
    """Say what held up the engine in a gap, if anything did, and which threads of engines could not run around it.

    Args:
        system: All lines of `actscope metrics system`. Those of other times tell which threads work.
        io: All lines of `actscope metrics io`; may be empty.
        gap: The gap.
    """
    around = lines_around(system, gap)
    if not around:
        return ["The measurements have no line for that time: collect them while requests run, at a short --interval."]
    threads = held_threads(around, gap)
    said = _cause(_workers(system, threads), around, lines_around(io, gap), gap)
    held: Counter[tuple[str, str]] = Counter()
    for line in around:
        for process in line.processes.values():
            for thread in process.threads.values() if process.found_as else ():
                held.update({(thread.name, cause): ns for cause, ns in thread.off_cpu_ns.items() if cause in HELD_UP})
    seconds = sum(line.interval_s for line in around)
    sources = ", ".join(sorted({line.source for line in around}))
    rows = [*said, f"What the kernel saw of engines in the {seconds:.3g} s around it (by {sources}):"]
    for (name, cause), ns in held.most_common(_MOST_THREADS):
        rows.append(f"  threads named {name} {HELD_UP[cause]} for {milliseconds(ns)} in all")
    return rows if held else [*rows, "  no thread of an engine was held up"]


def held_threads(around: Sequence[SystemLine], gap: GapSpan) -> dict[ThreadKey, HeldThread]:
    """Return the threads of engines in the lines around a gap."""
    found: dict[ThreadKey, HeldThread] = {}
    for line in around:
        most = gap.overlap_ns(line)
        for pid, process in line.processes.items():
            for tid, thread in process.threads.items() if process.found_as else ():
                one = found.setdefault((pid, tid), HeldThread(int(pid), thread.name, process.found_as))
                _add(one, thread, most)
    return found


def _add(one: HeldThread, thread: ThreadWaits, most_ns: int) -> None:
    one.held.update({cause: min(ns, most_ns) for cause, ns in thread.off_cpu_ns.items()})
    one.ran_ns += thread.on_cpu_ns
    one.faults += thread.page_faults
    for waker in thread.woken_by:
        one.wakers[f"{waker.name} ({waker.tid or waker.pid})" if waker.pid else waker.name] += waker.waited_ns


def _workers(lines: Sequence[SystemLine], threads: dict[ThreadKey, HeldThread]) -> list[HeldThread]:
    """Return the threads that work, of those that the lines around the gap have: they ran most in all lines together."""
    ran: Counter[ThreadKey] = Counter()
    for line in lines:
        for pid, process in line.processes.items():
            ran.update({(pid, tid): one.on_cpu_ns for tid, one in process.threads.items() if process.found_as})
    most = max((ran[key] for key in threads), default=0)
    return [one for key, one in threads.items() if most and ran[key] >= _WORKS_FROM * most]


def _cause(
    workers: Sequence[HeldThread], around: Sequence[SystemLine], io: Sequence[IoLine], gap: GapSpan
) -> list[str]:
    """Return the sentence that names what held up the engine for a good part of the gap; [] if nothing did."""
    longest = max(((*one.longest(), one) for one in workers), key=lambda row: row[0], default=None)
    if longest is None or longest[0] < _NAMED_FROM * gap.ns:
        return []
    ns, cause, one = longest
    more = _MORE[cause](one, around, io)
    return [
        f"The engine was held up: its thread {one.name} {_WORKER_HELD_UP[cause]} for {milliseconds(ns)} of these "
        f"{milliseconds(gap.ns)}{more}."
    ]


def _neighbours(one: HeldThread, around: Sequence[SystemLine], io: Sequence[IoLine]) -> str:
    """Name who ran meanwhile."""
    ran: Counter[str] = Counter()
    for line in around:
        ran.update({f"{p.name} ({pid})": p.on_cpu_ns for pid, p in line.processes.items() if int(pid) != one.pid})
    busiest = [f"{name} for {milliseconds(ns)}" for name, ns in ran.most_common(2) if ns]
    return f", while others ran: {', '.join(busiest)}" if busiest else ""


def _device(one: HeldThread, around: Sequence[SystemLine], io: Sequence[IoLine]) -> str:
    """Name the device in which requests spent most time meanwhile."""
    spent: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    buckets: dict[str, list[LatencyBucket]] = {}
    for line in io:
        for device in line.latency_histogram:
            name = f"{device.device_name} ({device.label})" if device.label else device.device_name
            spent[name] += round(sum(totals.latency_us * totals.count for totals in device.operations.values()))
            requests[name] += device.total
            buckets.setdefault(name, []).extend(device.buckets)
    if not spent:
        return ""
    name = spent.most_common(1)[0][0]
    slow = quantile_us(sorted(buckets[name], key=lambda bucket: bucket.slot), 0.99)
    within = f", 99 % of them within {milliseconds(slow * 1000)}" if slow else ""
    return f"; the busiest device was {name}, with {requests[name]:,} requests{within}"


def _pages(one: HeldThread, around: Sequence[SystemLine], io: Sequence[IoLine]) -> str:
    faults = f", in {one.faults:,} page faults" if one.faults else ""
    return faults + _device(one, around, io)


def _waker(verb: str) -> Callable[[HeldThread, Sequence[SystemLine], Sequence[IoLine]], str]:
    """Name the thread that ended the longest waits."""

    def said(one: HeldThread, around: Sequence[SystemLine], io: Sequence[IoLine]) -> str:
        return f", until {one.wakers.most_common(1)[0][0]} {verb}" if one.wakers else ""

    return said


_MORE: dict[str, Callable[[HeldThread, Sequence[SystemLine], Sequence[IoLine]], str]] = {
    "runnable": _neighbours,
    "io": _device,
    "fault": _pages,
    "stopped": _waker("let it go on"),
    "lock": _waker("woke it"),
}
