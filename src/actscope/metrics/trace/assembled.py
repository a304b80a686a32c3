"""A trace made of timelines, a recording, measurements and profiles: those of one boot, on one clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actscope.clock import ClockPair
from actscope.errors import MetricsError
from actscope.metrics.lines import IoLine, SystemLine
from actscope.metrics.reader import MeasurementFile
from actscope.metrics.timeline.answer import AnsweredTimeline
from actscope.metrics.trace.clocks import TraceClock
from actscope.metrics.trace.events import TraceEvents
from actscope.metrics.trace.machine import add_io, add_system, join_tokens
from actscope.metrics.trace.profiler import ProfiledTrace, add_profile
from actscope.metrics.trace.protobuf import encoded
from actscope.metrics.trace.recorded import add_recording, clock_pair_of
from actscope.metrics.trace.requests import RequestTracks, Scores
from actscope.recording.reading.recording import Recording


@dataclass(frozen=True, slots=True)
class TraceSources:
    """What a trace is made of.

    Attributes:
        timelines: Requests, as a gateway answered.
        scores: Their scores, by request.
        recording: A recording. Its requests that are in `timelines` are taken from there, with all their borders.
        only: Requests of the recording to take; empty: all.
        files: Measurements.
        profiles: Traces of torch's profiler, taken in the boot of the others.
    """

    timelines: Sequence[AnsweredTimeline] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    recording: Recording | None = None
    only: frozenset[str] = frozenset()
    files: Sequence[MeasurementFile] = ()
    profiles: Sequence[ProfiledTrace] = ()


@dataclass(frozen=True, slots=True)
class MadeTrace:
    """An encoded trace, its numbers of events and flows, and what was left out."""

    data: bytes
    n_events: int
    n_flows: int
    left_out: Sequence[str]


def make_trace(sources: TraceSources) -> MadeTrace:
    """Make a trace. Its clock is that of the timelines, else of the recording, else of the last line of the measurements.

    Raises:
        MetricsError: Nothing in the sources has times of a boot that is known, or there are too many events.
        RecordingDamaged: The recording's records cannot be read.
    """
    clock = TraceClock.of(_clock_pair(sources))
    boot, events = clock.pair.boot_id, TraceEvents()
    timelines = [one for one in sources.timelines if one.clock.boot_id == boot]
    requests = RequestTracks(events)
    for one in timelines:
        requests.add(one, sources.scores.get(one.request))
    requests.close()
    system = [line for file in sources.files for line in file.system if line.boot_id == boot]
    io = [line for file in sources.files for line in file.io if line.boot_id == boot]
    held = add_system(events, sorted(system, key=_end))
    join_tokens(events, held, requests.tokens)
    add_io(events, sorted(io, key=_end))
    rows = 0
    if sources.recording is not None:
        known = {one.request for one in timelines}
        rows = add_recording(events, sources.recording, boot, known, sources.only)
    for profile in sources.profiles:
        add_profile(events, profile, clock)
    if not events.events:
        raise MetricsError("there is nothing to trace: expected requests, rows or measurements of one boot, found none")
    lines = sum(len(file.system) + len(file.io) for file in sources.files) - len(system) - len(io)
    left = {"timelines": len(sources.timelines) - len(timelines), "lines of measurements": lines, "rows": rows}
    return MadeTrace(
        encoded(events, clock),
        len(events.events),
        events.n_flows,
        [
            f"{n:,} {what} are of another boot, whose clock has nothing to do with this one's"
            for what, n in left.items()
            if n
        ],
    )


def _end(line: IoLine | SystemLine) -> int:
    return line.monotonic_ns


def _clock_pair(sources: TraceSources) -> ClockPair:
    if sources.timelines:
        clock = sources.timelines[-1].clock
        return ClockPair(clock.monotonic_ns, clock.wall_ns, clock.boot_id)
    pair = None if sources.recording is None else clock_pair_of(sources.recording)
    if pair is not None:
        return pair
    every: list[IoLine | SystemLine] = []
    for file in sources.files:
        every += [*file.io, *file.system]
    timed = [line for line in every if line.boot_id and line.monotonic_ns]
    if not timed:
        raise MetricsError(
            "there is no clock to trace on: expected a recording, a timeline or lines of `actscope metrics`, found none of a "
            "known boot; add --live, or a recording"
        )
    last = max(timed, key=lambda line: line.timestamp)
    return ClockPair(last.monotonic_ns, round(last.timestamp * 1e9), last.boot_id)
