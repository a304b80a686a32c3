"""What the kernel saw of engines around a gap, from lines of `actscope metrics system`. It stands beside the parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from actscope.metrics.lines import SystemLine
from actscope.metrics.timeline.sentence import milliseconds

#: Causes for which a thread that has work does not run, and how they read. Idle threads wait for locks and sleep.
HELD_UP = {
    "runnable": "waited for a processor",
    "io": "waited for a block device",
    "fault": "waited for a page",
    "stopped": "were stopped",
}
#: Most threads that are named.
_MOST_THREADS = 3


def lines_around(lines: Iterable[SystemLine], start_ns: int, end_ns: int, boot_id: str) -> list[SystemLine]:
    """Return the lines of this boot whose interval overlaps a gap."""
    return [
        line
        for line in lines
        if line.boot_id == boot_id
        and line.monotonic_ns > start_ns
        and line.monotonic_ns - line.interval_s * 1e9 < end_ns
    ]


def meanwhile(lines: Sequence[SystemLine]) -> list[str]:
    """Say which threads of watched processes could not run in the intervals of these lines, longest first.

    Args:
        lines: Lines whose intervals overlap a gap, see `lines_around`. The times are those of whole intervals.
    """
    if not lines:
        return ["The measurements have no line for that time: collect them while requests run, at a short --interval."]
    held: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for process in line.processes.values():
            for thread in process.threads.values() if process.found_as else ():
                held.update({(thread.name, cause): ns for cause, ns in thread.off_cpu_ns.items() if cause in HELD_UP})
    seconds = sum(line.interval_s for line in lines)
    sources = ", ".join(sorted({line.source for line in lines}))
    rows = [f"What the kernel saw of engines in the {seconds:.3g} s around it (by {sources}):"]
    for (name, cause), ns in held.most_common(_MOST_THREADS):
        rows.append(f"  threads named {name} {HELD_UP[cause]} for {milliseconds(ns)} in all")
    return rows if held else [*rows, "  no thread of an engine was held up"]
