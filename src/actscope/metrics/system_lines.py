"""Lines of CPU, memory and pressure: what happened between two snapshots."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from actscope.metrics.lines import (
    KernelStack,
    LineStamp,
    Pressures,
    ProcessWaits,
    Source,
    SystemLine,
    ThreadWaits,
    Waker,
)
from actscope.metrics.sources.threads import CAUSES, SystemSnapshot, ThreadCounts, by_cause

_MOST_WAKERS, _MOST_STACKS = 5, 10
#: TID of a waker that is no thread.
INTERRUPT = 0xFFFFFFFF
#: Losses that cost no count.
REPAIRED = ("switches_unseen",)
Addresses = Callable[[int], list[int]]


def system_line(
    before: SystemSnapshot,
    after: SystemSnapshot,
    rung: Source,
    watched: Mapping[int, str],
    pressure: Pressures,
    cgroups: dict[str, Pressures],
    stack: Addresses,
) -> SystemLine:
    """Return the line of the interval between two snapshots. Processes that neither waited nor faulted are left out.

    Args:
        before: Snapshot at its begin.
        after: Snapshot at its end.
        rung: How they were measured.
        watched: Processes whose threads are named, with what they are.
        pressure: Pressure of the machine.
        cgroups: Pressure of control groups.
        stack: Returns the addresses of a kernel stack by its number.
    """
    changes = _changes(before, after)
    processes = _processes(changes, watched, before, after, stack)
    stamp = LineStamp.at(after.monotonic_ns)
    losses = {
        name: n - before.losses.get(name, 0) for name, n in after.losses.items() if n > before.losses.get(name, 0)
    }
    faults: dict[str, int | float] = defaultdict(int)
    for one in changes.values():
        if one.faults:
            faults[str(one.pid)] += one.faults
    return SystemLine(
        timestamp=stamp.timestamp,
        iso_timestamp=stamp.iso_timestamp,
        interval_s=max((after.monotonic_ns - before.monotonic_ns) / 1e9, 1e-9),
        off_cpu_ns={pid: sum(one.off_cpu_ns.values()) for pid, one in processes.items()},
        page_faults=dict(faults),
        pressure=dict(pressure),
        processes=processes,
        cgroup_pressure=cgroups,
        kind="system",
        source=rung,
        schema_version=stamp.schema_version,
        monotonic_ns=stamp.monotonic_ns,
        boot_id=stamp.boot_id,
        lost_events=sum(n for name, n in losses.items() if name not in REPAIRED),
        losses=losses,
    )


def _changes(before: SystemSnapshot, after: SystemSnapshot) -> dict[int, ThreadCounts]:
    """Return what each thread did between two snapshots. A thread that is new has done all since it was first seen."""
    found = {}
    for tid, now in after.threads.items():
        old = before.threads.get(tid)
        if old is None or (old.start and old.start != now.start):
            found[tid] = replace(now, on_ns=0)  # what it has run is of its whole life
            continue
        ran = max(now.on_ns - old.on_ns, 0) if old.on_ns else 0
        off = np.where(now.off_ns >= old.off_ns, now.off_ns - old.off_ns, 0)
        found[tid] = ThreadCounts(now.pid, now.name, max(now.faults - old.faults, 0), off, now.start, ran)
    return found


def _processes(
    changes: dict[int, ThreadCounts],
    watched: Mapping[int, str],
    before: SystemSnapshot,
    after: SystemSnapshot,
    stack: Addresses,
) -> dict[str, ProcessWaits]:
    threads: dict[int, dict[int, ThreadCounts]] = defaultdict(dict)
    for tid, one in changes.items():
        if one.faults or one.on_ns or one.off_ns.any():
            threads[one.pid][tid] = one
    wakers = _wakers(before, after)
    stacks = _stacks(before, after, stack)
    return {
        str(pid): ProcessWaits(
            name=_name_of(pid, own),
            off_cpu_ns=by_cause(np.sum([one.off_ns for one in own.values()], axis=0)),
            threads={
                str(tid): ThreadWaits(one.name, by_cause(one.off_ns), one.faults, wakers.get(tid, []), one.on_ns)
                for tid, one in sorted(own.items())
            }
            if pid in watched
            else {},
            stacks=sorted((s for tid in own for s in stacks.get(tid, ())), key=lambda s: -s.waited_ns)[:_MOST_STACKS],
            found_as=watched.get(pid, ""),
            on_cpu_ns=sum(one.on_ns for one in own.values()),
        )
        for pid, own in sorted(threads.items())
    }


def _name_of(pid: int, threads: dict[int, ThreadCounts]) -> str:
    """Return the name of a process: its main thread's, else what /proc says, else that of one of its threads."""
    if pid in threads:
        return threads[pid].name
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return next(iter(threads.values())).name


def _wakers(before: SystemSnapshot, after: SystemSnapshot) -> dict[int, list[Waker]]:
    """Return who ended the waits of each thread, those first that it waited for longest."""
    found: dict[int, list[Waker]] = defaultdict(list)
    for (tid, waker), now in after.wakes.items():
        old = before.wakes.get((tid, waker))
        count, waited = (now.count - old.count, now.waited_ns - old.waited_ns) if old else (now.count, now.waited_ns)
        if count > 0:
            named = (0, 0, "interrupt") if waker == INTERRUPT else (now.pid, waker, now.name)
            found[tid].append(Waker(*named, count, waited))
    return {tid: sorted(wakers, key=lambda one: -one.waited_ns)[:_MOST_WAKERS] for tid, wakers in found.items()}


def _stacks(before: SystemSnapshot, after: SystemSnapshot, stack: Addresses) -> dict[int, list[KernelStack]]:
    found: dict[int, list[KernelStack]] = defaultdict(list)
    for key, (count, waited) in after.long_waits.items():
        old = before.long_waits.get(key, (0, 0))
        if count > old[0]:
            tid, number, cause = key
            frames = [name for name in map(symbol, stack(number)) if not name.startswith("bpf_")]  # the program's own
            found[tid].append(KernelStack(tid, CAUSES[cause], count - old[0], waited - old[1], frames))
    return found


_symbols: tuple[list[int], list[str]] = ([], [])


def symbol(address: int) -> str:
    """Return the name of the kernel's function at an address, or the address in hex where names are hidden."""
    if not _symbols[0]:
        _read_symbols()
    at = bisect_right(_symbols[0], address) - 1
    return _symbols[1][at] if at >= 0 and _symbols[0][at] else hex(address)


def _read_symbols() -> None:
    try:
        lines = Path("/proc/kallsyms").read_text().splitlines()
    except OSError:
        lines = []
    pairs = sorted(
        (int(fields[0], 16), fields[2]) for fields in map(str.split, lines) if len(fields) > 2 and fields[1] in "tTwW"
    )
    _symbols[0][:] = [address for address, _ in pairs] or [0]
    _symbols[1][:] = [name for _, name in pairs] or [""]
