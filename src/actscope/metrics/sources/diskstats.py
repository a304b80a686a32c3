"""/proc/diskstats: what the kernel counts for each block device, without latencies of single requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actscope.errors import MetricsError

#: Kinds of requests, in the order of blockio.bpf.c. `passthrough` is not in the kernel's statistics.
OPERATIONS = ("read", "write", "discard", "flush", "passthrough")
SLOTS = 27
COUNT, LATENCY_NS, QUEUE_NS, BYTES, REQUEUES = range(5)
_SECTOR = 512
#: First column of each operation behind the device's name: requests, merges, sectors, ms. Flushes have requests and ms.
_COLUMNS = {"read": 0, "write": 4, "discard": 11}
_FLUSH, _IN_FLIGHT = 15, 8


@dataclass(slots=True)
class DeviceCounts:
    """Counts of one device since some moment.

    Attributes:
        operations: uint64 [5, 5]: for each operation requests, ns in the device, ns before, bytes, requeues.
        slots: uint64 [27]: requests by log2 of their µs in the device.
        in_flight: Requests that the device works on now.
        has_latencies: Whether `slots` are counted.
    """

    operations: np.ndarray
    slots: np.ndarray
    in_flight: int = 0
    has_latencies: bool = True

    @classmethod
    def none(cls, *, has_latencies: bool = True) -> DeviceCounts:
        """Return counts of nothing."""
        return cls(np.zeros((len(OPERATIONS), 5), np.uint64), np.zeros(SLOTS, np.uint64), 0, has_latencies)

    def __add__(self, other: DeviceCounts) -> DeviceCounts:
        return DeviceCounts(
            self.operations + other.operations,
            self.slots + other.slots,
            self.in_flight + other.in_flight,
            self.has_latencies,
        )

    def since(self, before: DeviceCounts | None) -> DeviceCounts:
        """Return what came after `before`. A counter that has gone back, as of a device that was replaced, counts from 0."""
        if before is None:
            return self
        operations, slots = _difference(self.operations, before.operations), _difference(self.slots, before.slots)
        return DeviceCounts(operations, slots, self.in_flight, self.has_latencies)

    @property
    def total(self) -> int:
        """Number of requests that the kernel's statistics count: all but passthrough ones."""
        return int(self.operations[:-1, COUNT].sum())


def _difference(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.where(now >= before, now - before, now)


def read_diskstats(path: Path = Path("/proc/diskstats")) -> dict[str, DeviceCounts]:
    """Return the kernel's counts of all block devices since boot, by name.

    Latencies are from the start of a request, in whole ms, so the time in the queue is in them.

    Raises:
        MetricsError: The file cannot be read or is malformed.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read: {error.strerror}: mount procfs here") from error
    return {line.split()[2]: _counts(line.split()[3:], path, line) for line in lines if line.strip()}


def _counts(fields: list[str], path: Path, line: str) -> DeviceCounts:
    try:
        numbers = [int(field) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) < _FLUSH - 4:
        raise MetricsError(f"{path}: expected at least 11 numbers behind the device's name, found {line[:200]!r}")
    counts = DeviceCounts.none(has_latencies=False)
    for operation, column in _COLUMNS.items():
        if len(numbers) > column + 3:
            requests, _, sectors, ms = numbers[column : column + 4]
            row = counts.operations[OPERATIONS.index(operation)]
            row[COUNT], row[LATENCY_NS], row[BYTES] = requests, ms * 1_000_000, sectors * _SECTOR
    if len(numbers) > _FLUSH + 1:
        row = counts.operations[OPERATIONS.index("flush")]
        row[COUNT], row[LATENCY_NS] = numbers[_FLUSH], numbers[_FLUSH + 1] * 1_000_000
    counts.in_flight = numbers[_IN_FLIGHT]
    return counts
