"""Collectors of block I/O: by programs in the kernel, or from /proc alone."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actscope.metrics.bpf.loaded import LoadedObject
from actscope.metrics.lines import Source
from actscope.metrics.sources.devices import BlockDevices
from actscope.metrics.sources.diskstats import OPERATIONS, SLOTS, DeviceCounts, read_diskstats
from actscope.metrics.sources.kernel import kernel_has

_DEVICE = np.dtype([("disk", "S32"), ("partition", "<u4"), ("operation", "<u4")])
_TOTALS = np.dtype([("sums", "<u8", 5), ("slots", "<u8", SLOTS)])
_FLIGHT = np.dtype(
    [
        ("device", _DEVICE),
        ("issued_ns", "<u8"),
        ("started_ns", "<u8"),
        ("completed_ns", "<u8"),
        ("bytes", "<u4"),
        ("requeues", "<u4"),
        ("in_driver", "<u4"),
        ("accounted", "<u4"),
    ]
)
#: Why an event was not counted, in the order of blockio.bpf.c.
_LOSSES = ("requests_in_flight_full", "devices_full", "completions_missed")
#: Offset of `without_io_done` in the constants of blockio.bpf.c.
_WITHOUT_IO_DONE = 0


@dataclass(slots=True)
class IoSnapshot:
    """All counts at one moment. Differences of two of them are what happened between.

    Attributes:
        monotonic_ns: The moment.
        devices: Counts by the kernel's name of the device. A disk includes its partitions.
        lost: Requests that the kernel counted and we did not.
        lost_by_device: The same by disk. A disk's count and what it lost are what the kernel counted.
        losses: What went wrong, by kind. Not each of it has cost a request.
    """

    monotonic_ns: int
    devices: dict[str, DeviceCounts]
    lost: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    lost_by_device: dict[str, int] = field(default_factory=dict)


class IoSource(Protocol):
    """Where counts of block I/O come from."""

    rung: Source

    def snapshot(self) -> IoSnapshot:
        """Return all counts."""

    def close(self) -> None:
        """Stop counting. Idempotent."""


class ProcIo:
    """Counts of /proc/diskstats."""

    rung: Source = "proc"

    def snapshot(self) -> IoSnapshot:
        """Return all counts. Raises MetricsError if /proc cannot be read."""
        return IoSnapshot(time.monotonic_ns(), read_diskstats())

    def close(self) -> None:
        """Do nothing."""


class BpfIo:
    """Counts of blockio.bpf.o, and of /proc/diskstats for devices without requests of their own (dm, md, zram).

    Args:
        devices: Names of devices.
        without_io_done: Count as on kernels before 6.5.

    Raises:
        MetricsError: The programs cannot be loaded or attached.
    """

    rung: Source = "bpf"

    def __init__(self, devices: BlockDevices, *, without_io_done: bool = False) -> None:
        self._devices = devices
        has_io_done = not without_io_done and kernel_has("block_io_done")
        self.loaded = LoadedObject(
            "blockio",
            constants={_WITHOUT_IO_DONE: int(not has_io_done)},
            leave_out=frozenset() if has_io_done else frozenset({"io_done"}),
        )
        try:
            self.loaded.attach()
        except BaseException:
            self.close()
            raise
        self._resynchronised = 0
        self._lost: dict[str, int] = {}
        self._offset = self._first_offset()
        self._last_ns = time.monotonic_ns()

    def snapshot(self) -> IoSnapshot:
        """Return all counts. Raises MetricsError if a map cannot be read."""
        kernel = _totals(read_diskstats())  # first: what it has counted by now, the programs have seen
        devices = self._counted()
        now = time.monotonic_ns()
        for name, n in self._missing(kernel, _totals(devices)).items():
            self._lost[name] = max(self._lost.get(name, 0), n)
            devices.setdefault(name, DeviceCounts.none())
        for name, in_flight in self._in_flight(now).items():
            devices.setdefault(name, DeviceCounts.none()).in_flight = in_flight
        self._add_others(devices)
        self._last_ns = now
        return IoSnapshot(now, devices, sum(self._lost.values()), self._losses(), dict(self._lost))

    def _first_offset(self) -> dict[str, int]:
        """Return by how much the kernel's count of each disk is ahead of ours, read while no request ends if that is possible."""
        for _ in range(20):
            before, kernel, after = _totals(self._counted()), _totals(read_diskstats()), _totals(self._counted())
            if before == after:
                break
        return {name: total - after.get(name, 0) for name, total in kernel.items()}

    def _missing(self, kernel: dict[str, int], ours: dict[str, int]) -> dict[str, int]:
        """Return how many requests of each disk the kernel has counted since the programs were attached and we have not."""
        deficits = {name: total - self._offset.get(name, 0) - ours.get(name, 0) for name, total in kernel.items()}
        return {name: n for name, n in deficits.items() if n > 0 and self._has_requests(name)}

    def _has_requests(self, name: str) -> bool:
        device = self._devices.device(name)
        return device.own_requests and device.kind != "partition"  # a disk includes its partitions

    def _counted(self) -> dict[str, DeviceCounts]:
        """Return the counts of the programs: of each partition and each disk."""
        keys, values = self.loaded.map("devices").read()
        where = np.frombuffer(keys, _DEVICE)
        sums = np.frombuffer(values, _TOTALS).reshape(len(where), self.loaded.cpus)
        found: dict[str, DeviceCounts] = defaultdict(DeviceCounts.none)
        for key, one in zip(where, sums, strict=True):
            operation = int(key["operation"])
            for name in self._names(key):
                counts = found[name]
                counts.operations[operation] += one["sums"].sum(axis=0)
                if OPERATIONS[operation] != "passthrough":
                    counts.slots += one["slots"].sum(axis=0)
        return dict(found)

    def _names(self, key: np.void) -> tuple[str, ...]:
        """Return the names of the devices that an event counts for: the disk, and the partition if it was one's."""
        disk, partition = key["disk"].decode(errors="replace").replace("!", "/"), int(key["partition"])
        return (disk, self._devices.partition(disk, partition)) if partition else (disk,)

    def _in_flight(self, now: int) -> dict[str, int]:
        """Return the number of requests in each device's driver, without those whose end was missed.

        A request that is older than the last snapshot, of a device that sysfs says is idle, has ended unseen.
        """
        map_ = self.loaded.map("flights")
        keys, values = map_.read()
        flights = np.frombuffer(values, _FLIGHT)
        found: dict[str, int] = defaultdict(int)
        idle: dict[str, bool] = {}
        for i, flight in enumerate(flights):
            disk = self._names(flight["device"])[0]
            if flight["accounted"] and flight["issued_ns"] < self._last_ns:
                if disk not in idle:
                    idle[disk] = self._devices.in_flight(disk) == 0
                if idle[disk] and self._forget(keys[8 * i : 8 * i + 8], flight):
                    continue
            for name in self._names(flight["device"]) if flight["in_driver"] else ():
                found[name] += 1
        return found

    def _forget(self, key: bytes, flight: np.void) -> bool:
        """Remove a request whose end was missed. Returns whether it is gone, now or before."""
        map_ = self.loaded.map("flights")
        now = map_.get(key)
        if now is None:
            return True
        if np.frombuffer(now, _FLIGHT)[0]["issued_ns"] != flight["issued_ns"]:
            return False
        map_.remove(key)
        self._resynchronised += 1
        return True

    def _add_others(self, devices: dict[str, DeviceCounts]) -> None:
        for name, counts in read_diskstats().items():
            if name not in devices and counts.total and not self._devices.device(name).own_requests:
                devices[name] = counts

    def _losses(self) -> dict[str, int]:
        map_ = self.loaded.map("losses")
        values = {name: map_.get(i.to_bytes(4, "little")) for i, name in enumerate(_LOSSES)}
        found = {name: int.from_bytes(value or b"", "little") for name, value in values.items()}
        found["in_flight_resynchronised"] = self._resynchronised
        found["events_skipped_by_kernel"] = sum(cost.missed for cost in self.loaded.costs())
        return found

    def close(self) -> None:
        """Detach the programs. Idempotent."""
        self.loaded.close()


def _totals(devices: dict[str, DeviceCounts]) -> dict[str, int]:
    return {name: counts.total for name, counts in devices.items()}
