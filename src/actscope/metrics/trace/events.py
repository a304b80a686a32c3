"""The content of a trace before it is encoded: tracks, slices, instants, counters, and flows between them.

    track "requests"
      └─ track "chatcmpl-12bf"
           ├─ track "gaps"    │ 17 " fox"                              │ 18 " in"
           │                  │ scheduling │ pass       │ delivery     │ …          slices of one track nest
           └─ track "tokens"                                            ◇ 17         a flow joins the pass and the token

Names come from files and clients: they become one line of bounded length. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from actscope.errors import MetricsError
from actscope.runtime.printable import one_line

#: Most events of a trace: the page of Perfetto is slow with more, and each takes some 500 bytes here.
MOST_EVENTS = 1_000_000
_MOST_NAME = 200

#: A value that is shown beside an event.
Shown = int | float | str


@dataclass(frozen=True, slots=True)
class TraceTrack:
    """A line of the picture.

    Attributes:
        number: Its number in the trace, from 1; 0 in the place of a parent: none.
        pid: Process of a track for a process or a thread; 0: neither.
        tid: Thread of a track for a thread.
        unit: Of a counter: what it counts. None: the track has slices.
    """

    number: int
    name: str
    parent: int = 0
    pid: int = 0
    tid: int = 0
    unit: str | None = None


@dataclass(slots=True)
class TraceEvent:
    """A slice; an instant, if it has no length; or a value of a counter."""

    track: int
    start_ns: int
    end_ns: int
    name: str
    shown: Mapping[str, Shown] = field(default_factory=dict)
    flows: list[int] = field(default_factory=list)
    value: float | None = None


def clean(name: str) -> str:
    """Return a name as one line of at most 200 characters."""
    text = one_line(name)
    return text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1] + "…"


class TraceEvents:
    """Collects what a trace has. `flow` is called with all events that it joins, in the order of time."""

    def __init__(self) -> None:
        self.tracks: dict[tuple[object, ...], TraceTrack] = {}
        self.events: list[TraceEvent] = []
        self.n_flows = 0

    def track(self, name: str, parent: int = 0, *, unit: str | None = None) -> int:
        """Return the number of the track of this name below another one."""
        return self._track((parent, name, unit), TraceTrack(len(self.tracks) + 1, clean(name), parent, unit=unit))

    def process(self, pid: int, name: str) -> int:
        """Return the number of the track of a process. The first name that is given stays."""
        return self._track(("pid", pid), TraceTrack(len(self.tracks) + 1, clean(name), pid=pid))

    def thread(self, pid: int, tid: int, name: str) -> int:
        """Return the number of the track of a thread. The first name that is given stays."""
        return self._track(("pid", pid, tid), TraceTrack(len(self.tracks) + 1, clean(name), pid=pid, tid=tid))

    def _track(self, key: tuple[object, ...], fresh: TraceTrack) -> int:
        return self.tracks.setdefault(key, fresh).number

    def slice(
        self, track: int, start_ns: int, end_ns: int, name: str, shown: Mapping[str, Shown] | None = None
    ) -> TraceEvent:
        """Add a slice. Slices of one track must nest: one that overlaps another by a part belongs on a lane, see `lanes`."""
        return self._add(TraceEvent(track, start_ns, max(start_ns, end_ns), clean(name), shown or {}))

    def instant(self, track: int, at_ns: int, name: str, shown: Mapping[str, Shown] | None = None) -> TraceEvent:
        """Add an event without length."""
        return self.slice(track, at_ns, at_ns, name, shown)

    def counter(self, track: int, at_ns: int, value: float) -> None:
        """Add a value, which lasts until the next one of this track."""
        self._add(TraceEvent(track, at_ns, at_ns, "", value=float(value)))

    def lanes(self, name: str, parent: int, slices: Iterable[TraceEvent]) -> None:
        """Add slices whose track is not chosen yet: those that overlap without nesting go to further tracks of that name."""
        lanes: list[list[int]] = []  # of each the ends of the slices that are open, outermost first
        for one in sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)):
            number = next((i for i, ends in enumerate(lanes) if _takes(ends, one)), len(lanes))
            if number == len(lanes):
                lanes.append([])
            lanes[number].append(one.end_ns)
            one.track = self.track(f"{name} {number + 1}" if number else name, parent)
            self._add(one)

    def _add(self, event: TraceEvent) -> TraceEvent:
        if len(self.events) >= MOST_EVENTS:
            raise MetricsError(
                f"the trace would have more than {MOST_EVENTS:,} events: choose some requests with --request, or fewer files"
            )
        self.events.append(event)
        return event

    def flow(self, *events: TraceEvent) -> None:
        """Draw arrows from each of these events to the next one. They must be in the order of time."""
        assert len(events) > 1
        assert all(one.start_ns <= two.start_ns for one, two in pairwise(events))
        self.n_flows += 1
        for one in events:
            one.flows.append(self.n_flows)

    def ordered(self) -> list[tuple[int, str, TraceEvent]]:
        """Return time, kind ("begin", "end" or "at") and event of everything, in the order in which it must be written.

        At one time, what ends comes first, the innermost before those around it; then what begins, the outermost first; then
        what has no length.
        """
        rows: list[tuple[tuple[int, int, int, int], str, TraceEvent]] = []
        for number, one in enumerate(self.events):
            if one.end_ns > one.start_ns:
                rows.append(((one.start_ns, 1, -one.end_ns, number), "begin", one))
                rows.append(((one.end_ns, 0, -one.start_ns, -number), "end", one))
            else:
                rows.append(((one.start_ns, 2, 0, number), "at", one))
        rows.sort(key=lambda row: row[0])
        return [(key[0], kind, one) for key, kind, one in rows]

    def flow_ends(self) -> dict[int, TraceEvent]:
        """Return the event at which each flow ends: the last one that it joins."""
        last: dict[int, TraceEvent] = {}
        seen: dict[int, int] = defaultdict(int)
        for _, kind, one in self.ordered():
            for number in one.flows if kind != "end" else ():
                last[number] = one
                seen[number] += 1
        assert all(count > 1 for count in seen.values())
        return last


def _takes(ends: list[int], one: TraceEvent) -> bool:
    """Return whether a slice nests in those of a lane that are open when it begins. The others are removed."""
    while ends and ends[-1] <= one.start_ns:
        ends.pop()
    return not ends or one.end_ns <= ends[-1]
