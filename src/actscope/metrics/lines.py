"""The lines of a file of measurements: one JSON object for each interval.

The first fields are those of the tools that people come from, so that either reads the other's files. What those files do not
have gets its default.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from actscope.clock import clock_pair

SCHEMA_VERSION = 1
#: How a line was measured, best first: programs in the kernel, tracepoints read through perf, or /proc alone.
Source = Literal["bpf", "perf", "proc", "unknown"]


class LatencyBucket(msgspec.Struct, frozen=True):
    """Number of requests that took from `bucket_low` to `bucket_high` µs, both included."""

    slot: int
    count: int
    bucket_low: int
    bucket_high: int


class OperationTotals(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests of one kind that ended in the interval.

    Attributes:
        count: Number of requests.
        bytes: Their data.
        latency_us: Mean time in the device.
        queue_us: Mean time from the start of the request to its first issue.
        requeues: How often the device had no room for one.
    """

    count: int
    bytes: int = 0
    latency_us: float = 0.0
    queue_us: float = 0.0
    requeues: int = 0


class DeviceLatency(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one block device did in the interval.

    Attributes:
        device_name: The kernel's name, as in /proc/diskstats. A disk includes its partitions.
        total: Number of reads, writes, discards and flushes that ended, as /proc/diskstats counts them.
        buckets: Their latencies. Empty where `source` is `proc`, which has none.
        kind: disk, partition, loop, lvm, crypt, mpath, dm, raid, nvme-path or zram.
        label: Name that a person knows, such as the volume's.
        parents: Devices that it lies on.
        holders: Devices that lie on it.
        operations: The requests by kind: read, write, discard, flush, and passthrough, which is not in `total`.
        mean_in_flight: Mean number of requests in the device (sum of latencies by time).
        lost: Of a disk, requests that the kernel counted and the programs did not see: `total` and `lost` are what the kernel
            counted.
    """

    device_name: str
    total: int
    buckets: list[LatencyBucket]
    kind: str = ""
    label: str = ""
    parents: list[str] = []
    holders: list[str] = []
    operations: dict[str, OperationTotals] = {}
    mean_in_flight: float | None = None
    source: Source = "unknown"
    lost: int = 0


class DeviceInflight(msgspec.Struct, frozen=True):
    """Number of requests that a device was working on at the end of the interval."""

    device_name: str
    count: int


class ProgramShare(msgspec.Struct, frozen=True):
    """What one program in the kernel cost in the interval."""

    runs: int
    ns_per_run: float


class CollectorCost(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the collector itself cost in the interval.

    Attributes:
        cpu_percent: CPU time of this process and of its programs in the kernel, in percent of one core.
        process_percent: The part of this process.
        kernel_percent: The part of the programs; None if the kernel does not time them.
        memory_mb: Resident memory of this process.
        programs: The programs, by name.
    """

    cpu_percent: float
    process_percent: float
    kernel_percent: float | None = None
    memory_mb: float = 0.0
    programs: dict[str, ProgramShare] = {}


class RecordingDevice(msgspec.Struct, frozen=True):
    """A recording that is being written, and the device under it."""

    path: str
    device_name: str
    devices: list[str]
    pid: int = 0


class IoLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Block I/O in one interval.

    Attributes:
        timestamp: End of the interval, in seconds since the Unix epoch.
        interval_s: Seconds that it really lasted.
        monotonic_ns: End of the interval on the clock of recordings.
        source: How it was measured. "unknown" in a file of another tool.
        lost_events: Events that could not be counted in the interval. `losses` says why.
        missing: What could not be measured, each with the command that makes it possible.
        recordings: The recordings that are being written, and their devices.
    """

    timestamp: float
    interval_s: float
    latency_histogram: list[DeviceLatency]
    iso_timestamp: str = ""
    inflight: list[DeviceInflight] = []
    kind: str = ""
    source: Source = "unknown"
    schema_version: int = 0
    monotonic_ns: int = 0
    boot_id: str = ""
    lost_events: int = 0
    losses: dict[str, int] = {}
    missing: list[str] = []
    recordings: list[RecordingDevice] = []
    cost: CollectorCost | None = None


class Waker(msgspec.Struct, frozen=True):
    """A thread that ended waits of another one: how many, and how long they had lasted."""

    pid: int
    tid: int
    name: str
    count: int
    waited_ns: int


class ThreadWaits(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thread of a watched process. `on_cpu_ns` is what it had run when it last left a CPU; 0: not known."""

    name: str
    off_cpu_ns: dict[str, int]
    page_faults: int = 0
    woken_by: list[Waker] = []
    on_cpu_ns: int = 0


class KernelStack(msgspec.Struct, frozen=True):
    """A place in the kernel where a watched thread waited long."""

    tid: int
    cause: str
    count: int
    waited_ns: int
    frames: list[str]


class ProcessWaits(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process: why its threads were not running.

    Attributes:
        off_cpu_ns: ns by cause, summed over its threads.
        threads: Its threads by TID, if it is watched.
        found_as: What it was recognised as: an engine, or the writer of a recording.
        on_cpu_ns: What its threads ran, each up to when it last left a CPU; 0: not known.
    """

    name: str
    off_cpu_ns: dict[str, int]
    threads: dict[str, ThreadWaits] = {}
    stacks: list[KernelStack] = []
    found_as: str = ""
    on_cpu_ns: int = 0


class Pressure(msgspec.Struct, frozen=True):
    """One line of a PSI file: share of the last 10, 60 and 300 s in percent, total in µs since boot."""

    avg10: float
    avg60: float
    avg300: float
    total: int


#: Pressure by resource (cpu, io, memory) and share (some, full).
Pressures = dict[str, dict[str, Pressure]]


class SystemLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """CPU, memory and pressure in one interval. The fields that an `IoLine` has too are explained there.

    Attributes:
        off_cpu_ns: ns that the threads of a process were not on a CPU, by PID.
        page_faults: User page faults by PID.
        pressure: PSI of the machine.
        processes: The processes by PID, with causes.
        cgroup_pressure: PSI of the control groups (v2) of watched processes, by the group's path.
    """

    timestamp: float
    interval_s: float
    off_cpu_ns: dict[str, int | float]
    iso_timestamp: str = ""
    page_faults: dict[str, int | float] = {}
    pressure: dict[str, object] = {}
    processes: dict[str, ProcessWaits] = {}
    cgroup_pressure: dict[str, Pressures] = {}
    kind: str = ""
    source: Source = "unknown"
    schema_version: int = 0
    monotonic_ns: int = 0
    boot_id: str = ""
    lost_events: int = 0
    losses: dict[str, int] = {}
    missing: list[str] = []
    cost: CollectorCost | None = None


class LineStamp(msgspec.Struct, frozen=True):
    """The fields of a line that say when it was measured."""

    timestamp: float
    iso_timestamp: str
    monotonic_ns: int
    boot_id: str
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def at(cls, monotonic_ns: int) -> LineStamp:
        """Return the stamp of a moment of this boot on CLOCK_MONOTONIC."""
        pair = clock_pair()
        wall = pair.wall_of(monotonic_ns) / 1e9
        return cls(
            wall, datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds"), monotonic_ns, pair.boot_id
        )
