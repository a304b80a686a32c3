"""A trace of Perfetto read back: its slices by track, as Perfetto's own reader nests them, and its flows."""

from __future__ import annotations

from dataclasses import dataclass, field

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent


@dataclass
class ReadSlice:
    """A slice or an instant: `path` has the names of its tracks from the root on, `depth` the number of slices around it."""

    path: tuple[str, ...]
    name: str
    start_ns: int
    end_ns: int
    depth: int
    shown: dict[str, int | float | str]
    flows: list[int]
    ended_flows: list[int]


@dataclass
class ReadTrace:
    slices: list[ReadSlice] = field(default_factory=list)
    counters: dict[tuple[str, ...], list[tuple[int, float]]] = field(default_factory=dict)
    clocks: dict[int, int] = field(default_factory=dict)

    def named(self, track: str) -> list[ReadSlice]:
        """The slices of all tracks of a name."""
        return [one for one in self.slices if one.path[-1] == track]

    def joined(self, number: int) -> list[ReadSlice]:
        """The events that a flow joins, in the order of the file."""
        return [one for one in self.slices if number in (*one.flows, *one.ended_flows)]


def read_trace(data: bytes) -> ReadTrace:
    """Read a trace, and check what every trace must have.

    Packets are in the order of time and of known tracks; each slice that begins ends, in the order of a stack; each flow has one
    end, which is its last event, and a begin before it.
    """
    trace, found = Trace.FromString(data), ReadTrace()
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    assert len(tracks) == sum(p.HasField("track_descriptor") for p in trace.packet)

    def path(number: int) -> tuple[str, ...]:
        one = tracks[number]
        name = one.name or one.thread.thread_name or one.process.process_name
        return (*(path(one.parent_uuid) if one.parent_uuid else ()), name)

    stacks: dict[int, list[ReadSlice]] = {}
    open_flows: dict[int, int] = {}
    over: set[int] = set()
    now = 0
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("clock_snapshot"):
            found.clocks = {one.clock_id: one.timestamp for one in packet.clock_snapshot.clocks}
            assert packet.clock_snapshot.primary_trace_clock == 3
        if not packet.HasField("track_event"):
            continue
        assert packet.timestamp >= now and packet.timestamp_clock_id == 3
        event, now = packet.track_event, packet.timestamp
        stack, where = stacks.setdefault(event.track_uuid, []), path(event.track_uuid)
        if event.type == TrackEvent.Type.TYPE_COUNTER:
            found.counters.setdefault(where, []).append((now, event.double_counter_value))
            continue
        if event.type == TrackEvent.Type.TYPE_SLICE_END:
            stack.pop().end_ns = now
            continue
        shown = {a.name: getattr(a, str(a.WhichOneof("value"))) for a in event.debug_annotations}
        one = ReadSlice(
            where, event.name, now, now, len(stack), shown, list(event.flow_ids), list(event.terminating_flow_ids)
        )
        found.slices.append(one)
        if event.type == TrackEvent.Type.TYPE_SLICE_BEGIN:
            stack.append(one)
        for number in one.flows:
            assert number not in over
            open_flows[number] = open_flows.get(number, 0) + 1
        for number in one.ended_flows:
            assert open_flows.pop(number) >= 1
            over.add(number)
    assert not open_flows and not any(stacks.values())
    return found
