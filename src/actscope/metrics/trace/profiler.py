"""Traces of torch's profiler (Chrome's JSON), put on the clock of a trace.

The profiler's times are wall time: microseconds from `baseTimeNanoseconds` on. They become CLOCK_MONOTONIC by the clock pair of
the trace, so their error is what the wall clock was corrected by between the two.
"""

from __future__ import annotations

import gzip
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from actscope.errors import MetricsError
from actscope.metrics.trace.clocks import TraceClock
from actscope.metrics.trace.events import Shown, TraceEvent, TraceEvents
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.regular_files import read_regular

_MOST_BYTES = 1 << 30
#: Microseconds of wall time, or a length.
Micros = Annotated[float, msgspec.Meta(ge=0, le=1e16)]


class ProfiledEvent(msgspec.Struct, frozen=True):
    """One event of Chrome's format, of which slices (X), instants (i), names (M) and flows (s, f) are used."""

    ph: str
    name: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: Micros = 0.0
    dur: Micros = 0.0
    cat: str = ""
    id: int | str = 0
    args: dict[str, object] = {}


class ProfiledTrace(msgspec.Struct, frozen=True):
    """The file of `torch.profiler.profile.export_chrome_trace`."""

    traceEvents: list[ProfiledEvent]
    baseTimeNanoseconds: int | None = None


def read_profile(path: Path) -> ProfiledTrace:
    """Read a trace of torch's profiler, which may be compressed with gzip.

    Raises:
        MetricsError: The file cannot be read, is larger than 1 GiB, or is none.
    """
    try:
        data = read_regular(path, _MOST_BYTES, MetricsError)
    except FileNotFoundError as error:
        raise MetricsError(f"{path}: there is no such file: profile.export_chrome_trace({str(path)!r})") from error
    if data[:2] == b"\x1f\x8b":
        with as_own_error(MetricsError, str(path)), gzip.open(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise MetricsError(f"{path}: has more than {_MOST_BYTES} bytes when unpacked, which are accepted")
    what = f"{path}: is no trace of torch's profiler (export_chrome_trace)"
    found = decode_json(data, ProfiledTrace, MetricsError, what)
    if found.baseTimeNanoseconds is None:
        raise MetricsError(
            f"{what}: expected baseTimeNanoseconds, which tells its clock, found none: use torch 2.3 or later"
        )
    return found


def add_profile(events: TraceEvents, found: ProfiledTrace, clock: TraceClock) -> int:
    """Add a profile. Returns the number of its slices and instants."""
    base = clock.monotonic_of(found.baseTimeNanoseconds or 0)
    names = _names(found.traceEvents)
    rows: dict[tuple[int | str, int | str], list[TraceEvent]] = defaultdict(list)
    for one in found.traceEvents:
        if one.ph in ("X", "i", "I"):
            begin = base + round(one.ts * 1000)
            end = begin + (round(one.dur * 1000) if one.ph == "X" else 0)
            if begin >= 0:
                rows[one.pid, one.tid].append(TraceEvent(0, begin, end, one.name, _shown(one)))
    home = events.track("torch profiler") if rows else 0
    for (pid, tid), slices in rows.items():
        process = events.track(names.get((pid, None), f"process {pid}"), home)
        events.lanes(names.get((pid, tid), f"thread {tid}"), process, slices)
    _join(events, found.traceEvents, rows, base)
    return sum(map(len, rows.values()))


def _names(found: Sequence[ProfiledEvent]) -> Mapping[tuple[int | str, int | str | None], str]:
    """Return the names of processes and threads, with their numbers."""
    names: dict[tuple[int | str, int | str | None], str] = {}
    for one in found:
        said = one.args.get("name")
        if one.ph == "M" and one.name == "process_name":
            names[one.pid, None] = f"{said} ({one.pid})"
        elif one.ph == "M" and one.name == "thread_name":
            names[one.pid, one.tid] = f"{said} ({one.tid})"
    return names


def _shown(one: ProfiledEvent) -> dict[str, Shown]:
    shown: dict[str, Shown] = {"category": one.cat} if one.cat else {}
    for name, value in one.args.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            shown[name] = str(value)
        else:
            shown[name] = value if not isinstance(value, int) or abs(value) < 1 << 63 else str(value)
    return shown


def _join(
    events: TraceEvents,
    found: Sequence[ProfiledEvent],
    rows: Mapping[tuple[int | str, int | str], list[TraceEvent]],
    base: int,
) -> None:
    """Draw the profile's own arrows, such as from a launch to its kernel, where both ends lie in a slice."""
    ordered = {key: sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)) for key, slices in rows.items()}
    begins: dict[tuple[str, int | str], TraceEvent] = {}
    for wanted in ("s", "f"):
        for one in found:
            inside = (
                _inside(ordered.get((one.pid, one.tid), ()), base + round(one.ts * 1000)) if one.ph == wanted else None
            )
            if inside is None:
                continue
            key = (one.cat, one.id)
            if wanted == "s":
                begins[key] = inside
            elif (begin := begins.pop(key, None)) is not None and begin is not inside:
                events.flow(*sorted((begin, inside), key=lambda event: event.start_ns))


def _inside(slices: Sequence[TraceEvent], at_ns: int) -> TraceEvent | None:
    """Return the innermost slice at a time, among the last few that began by then."""
    index = bisect_right(slices, at_ns, key=lambda one: one.start_ns)
    return next((one for one in reversed(slices[max(index - 64, 0) : index]) if one.end_ns >= at_ns), None)
