"""Lines of block I/O: what happened between two snapshots."""

from __future__ import annotations

import numpy as np

from actscope.metrics.lines import (
    DeviceInflight,
    DeviceLatency,
    IoLine,
    LatencyBucket,
    LineStamp,
    OperationTotals,
    Source,
)
from actscope.metrics.sources.blockio import IoSnapshot
from actscope.metrics.sources.devices import BlockDevices
from actscope.metrics.sources.diskstats import BYTES, COUNT, LATENCY_NS, OPERATIONS, QUEUE_NS, REQUEUES, DeviceCounts


def io_line(before: IoSnapshot, after: IoSnapshot, rung: Source, devices: BlockDevices) -> IoLine:
    """Return the line of the interval between two snapshots. Devices that did nothing are left out."""
    seconds = max((after.monotonic_ns - before.monotonic_ns) / 1e9, 1e-9)
    changes = {name: counts.since(before.devices.get(name)) for name, counts in sorted(after.devices.items())}
    stamp = LineStamp.at(after.monotonic_ns)
    losses = {
        name: n - before.losses.get(name, 0) for name, n in after.losses.items() if n > before.losses.get(name, 0)
    }
    lost = {name: n - before.lost_by_device.get(name, 0) for name, n in after.lost_by_device.items()}
    return IoLine(
        timestamp=stamp.timestamp,
        iso_timestamp=stamp.iso_timestamp,
        interval_s=seconds,
        latency_histogram=[
            _latency(name, one, seconds, devices, rung, lost.get(name, 0))
            for name, one in changes.items()
            if one.operations[:, COUNT].any() or lost.get(name)
        ],
        inflight=[
            DeviceInflight(name, one.in_flight)
            for name, one in changes.items()
            if one.in_flight or one.operations[:, COUNT].any()
        ],
        kind="io",
        source=rung,
        schema_version=stamp.schema_version,
        monotonic_ns=stamp.monotonic_ns,
        boot_id=stamp.boot_id,
        lost_events=max(after.lost - before.lost, 0),
        losses=losses,
    )


def _latency(
    name: str, counts: DeviceCounts, seconds: float, devices: BlockDevices, rung: Source, lost: int
) -> DeviceLatency:
    device = devices.device(name)
    return DeviceLatency(
        device_name=name,
        total=counts.total,
        buckets=buckets_of(counts.slots),
        kind=device.kind,
        label=device.label,
        parents=list(device.parents),
        holders=list(device.holders),
        operations={
            operation: _totals(row) for operation, row in zip(OPERATIONS, counts.operations, strict=True) if row[COUNT]
        },
        mean_in_flight=round(float(counts.operations[:, LATENCY_NS].sum()) / 1e9 / seconds, 4),
        source=rung if counts.has_latencies else "proc",
        lost=lost,
    )


def _totals(row: np.ndarray) -> OperationTotals:
    n = int(row[COUNT])
    latency, queue = (round(float(row[one]) / n / 1e3, 3) for one in (LATENCY_NS, QUEUE_NS))
    return OperationTotals(n, int(row[BYTES]), latency, queue, int(row[REQUEUES]))


def buckets_of(slots: np.ndarray) -> list[LatencyBucket]:
    """Return the buckets of a log2 histogram that hold something. Slot i is of 2^i .. 2^(i+1) - 1 µs; slot 0 holds 0 too."""
    return [
        LatencyBucket(slot, int(count), 0 if slot == 0 else 1 << slot, (2 << slot) - 1)
        for slot, count in enumerate(slots.tolist())
        if count
    ]
