"""Encoding of a trace as Perfetto's protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    BuiltinClock,
    ClockSnapshot,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

from actscope.metrics.trace.clocks import TraceClock
from actscope.metrics.trace.events import Shown, TraceEvent, TraceEvents, TraceTrack
from actscope.runtime.printable import printable

#: All packets are of one sequence, written in the order of time.
_SEQUENCE = 1
_TYPES = {
    "begin": TrackEvent.Type.TYPE_SLICE_BEGIN,
    "end": TrackEvent.Type.TYPE_SLICE_END,
    "at": TrackEvent.Type.TYPE_INSTANT,
}


def encoded(events: TraceEvents, clock: TraceClock) -> bytes:
    """Return the trace as Perfetto reads it.

    Args:
        events: What it has. Each flow is ended at the last event that it joins.
        clock: Instant on all clocks, for Perfetto to show wall time, and to merge the trace with others.
    """
    out = BytesIO()
    builder = StreamingTraceProtoBuilder(out)
    _snapshot(_packet(builder), clock, builder)
    for track in events.tracks.values():
        packet = _packet(builder)
        _describe(packet.track_descriptor, track)
        builder.write_packet(packet)
    ends = events.flow_ends()
    for at_ns, kind, one in events.ordered():
        packet = _packet(builder)
        packet.timestamp, packet.timestamp_clock_id = at_ns, BuiltinClock.BUILTIN_CLOCK_MONOTONIC
        _fill(packet.track_event, kind, one, ends)
        builder.write_packet(packet)
    return out.getvalue()


def _packet(builder: StreamingTraceProtoBuilder) -> TracePacket:
    packet = builder.create_packet()
    packet.trusted_packet_sequence_id = _SEQUENCE
    return packet


def _snapshot(packet: TracePacket, clock: TraceClock, builder: StreamingTraceProtoBuilder) -> None:
    packet.sequence_flags = TracePacket.SequenceFlags.SEQ_INCREMENTAL_STATE_CLEARED
    snapshot: ClockSnapshot = packet.clock_snapshot
    snapshot.primary_trace_clock = BuiltinClock.BUILTIN_CLOCK_MONOTONIC
    known = {
        BuiltinClock.BUILTIN_CLOCK_MONOTONIC: clock.pair.monotonic_ns,
        BuiltinClock.BUILTIN_CLOCK_REALTIME: clock.pair.wall_ns,
        BuiltinClock.BUILTIN_CLOCK_BOOTTIME: clock.boottime_ns,
    }
    for number, ns in known.items():
        if ns is not None:
            one = snapshot.clocks.add()
            one.clock_id, one.timestamp = number, ns
    builder.write_packet(packet)


def _describe(descriptor: TrackDescriptor, track: TraceTrack) -> None:
    descriptor.uuid = track.number
    if track.parent:
        descriptor.parent_uuid = track.parent
    descriptor.child_ordering = TrackDescriptor.ChildTracksOrdering.EXPLICIT
    descriptor.sibling_order_rank = track.number
    if track.tid:
        descriptor.thread.pid, descriptor.thread.tid, descriptor.thread.thread_name = track.pid, track.tid, track.name
    elif track.pid:
        descriptor.process.pid, descriptor.process.process_name = track.pid, track.name
    else:
        descriptor.name = track.name
    if track.unit is not None:
        descriptor.counter.unit_name = track.unit


def _fill(event: TrackEvent, kind: str, one: TraceEvent, ends: Mapping[int, TraceEvent]) -> None:
    event.track_uuid = one.track
    if one.value is not None:
        event.type, event.double_counter_value = TrackEvent.Type.TYPE_COUNTER, one.value
        return
    event.type = _TYPES[kind]
    if kind == "end":
        return
    event.name = one.name
    for number in one.flows:
        (event.terminating_flow_ids if ends[number] is one else event.flow_ids).append(number)
    for name, value in one.shown.items():
        _show(event, name, value)


def _show(event: TrackEvent, name: str, value: Shown) -> None:
    annotation = event.debug_annotations.add()
    annotation.name = printable(name)
    if isinstance(value, str):
        annotation.string_value = printable(value)
    elif isinstance(value, int):
        annotation.int_value = value
    else:
        annotation.double_value = value
