"""Block I/O from perf's tracepoints and /proc/diskstats, where programs cannot be loaded into the kernel.

    block_rq_issue ──▶ in the driver ──▶ block_rq_complete: its latency is in the histogram of the disk

Counts, bytes and means are those of /proc/diskstats, which misses nothing. Tracepoints tell no request's address, so a request is
known by its disk and its first sector; one without sectors (a flush) is in no histogram.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actscope.metrics.lines import Source
from actscope.metrics.sources.blockio import IoSnapshot
from actscope.metrics.sources.diskstats import SLOTS, read_diskstats
from actscope.metrics.sources.perf_events import PerfSample, PerfTracepoints, tracepoint

_DRAIN_SECONDS = 0.02
#: Requests in flight that are remembered at most; a completion that was missed leaves one behind.
_MOST_IN_FLIGHT = 65_536
#: Where a request begins: the disk's number and its first sector.
RequestKey = tuple[int, int]


@dataclass(slots=True)
class IssuedRequest:
    """A request in the driver: when it was issued, and the sectors that are still to be completed."""

    issued_ns: int
    sectors: int


class LatencyMatcher:
    """Pairs issues with completions. A requeued request is timed from its first issue; a partial completion leaves the rest.

    Attributes:
        slots: int64 [27] by the disk's number: completed requests by log2 of their µs.
        unmatched: Completions of requests whose issue was not seen.
        forgotten: Requests that were dropped because too many were in flight.
    """

    def __init__(self) -> None:
        self.slots: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(SLOTS, np.uint64))
        self.unmatched = self.forgotten = 0
        self._in_flight: dict[RequestKey, IssuedRequest] = {}

    def issue(self, at_ns: int, device: int, sector: int, sectors: int) -> None:
        """Take an issue. One with the same place and length as a request in flight is its second one, after a requeue."""
        known = self._in_flight.get((device, sector))
        if not sectors or (known is not None and known.sectors == sectors):
            return
        if len(self._in_flight) >= _MOST_IN_FLIGHT:
            self._in_flight.pop(next(iter(self._in_flight)))
            self.forgotten += 1
        self._in_flight[device, sector] = IssuedRequest(at_ns, sectors)

    def complete(self, at_ns: int, device: int, sector: int, sectors: int) -> None:
        """Take a completion of the first sectors of a request, or of all."""
        if not sectors:
            return
        known = self._in_flight.pop((device, sector), None)
        if known is None:
            self.unmatched += 1
        elif sectors < known.sectors:
            self._in_flight[device, sector + sectors] = IssuedRequest(known.issued_ns, known.sectors - sectors)
        else:
            us = max(at_ns - known.issued_ns, 0) // 1000
            self.slots[device][min(max(us.bit_length() - 1, 0), SLOTS - 1)] += 1


class PerfIo:
    """Counts of /proc/diskstats with latencies of perf's tracepoints. A thread reads these some fifty times a second.

    Raises:
        MetricsError: tracefs is not to be read, or the kernel does not let perf read tracepoints.
    """

    rung: Source = "perf"

    def __init__(self) -> None:
        self._issue, self._complete = tracepoint("block", "block_rq_issue"), tracepoint("block", "block_rq_complete")
        self._perf = PerfTracepoints((self._issue.number, self._complete.number))
        self._matcher, self._names = LatencyMatcher(), dict[int, str]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="actscope-perf", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_DRAIN_SECONDS):
            with self._lock:
                self._take()

    def _take(self) -> None:
        for sample in self._perf.read():
            self._match(sample)

    def _match(self, sample: PerfSample) -> None:
        is_issue = sample.tracepoint == self._issue.number
        form, take = (self._issue, self._matcher.issue) if is_issue else (self._complete, self._matcher.complete)
        device, sector, sectors = (form.value(sample.raw, name) for name in ("dev", "sector", "nr_sector"))
        take(sample.time_ns, device, sector, sectors)

    def snapshot(self) -> IoSnapshot:
        """Return all counts. Raises MetricsError if /proc cannot be read."""
        with self._lock:
            self._take()
            devices, now = read_diskstats(), time.monotonic_ns()
            for number, slots in self._matcher.slots.items():
                counts = devices.get(self._name(number))
                if counts is not None:
                    counts.slots, counts.has_latencies = slots.copy(), True
            lost = self._perf.lost
            losses = {
                "events_lost_by_perf": lost, "completions_without_issue": self._matcher.unmatched,
                "requests_in_flight_full": self._matcher.forgotten,
            }  # fmt: skip
        return IoSnapshot(now, devices, lost, losses)

    def _name(self, number: int) -> str:
        """Return the name of a disk by its number in the kernel (12 bits major, 20 bits minor)."""
        if number not in self._names:
            link = Path(f"/sys/dev/block/{number >> 20}:{number & 0xFFFFF}")
            try:
                self._names[number] = os.readlink(link).rpartition("/")[2].replace("!", "/")
            except OSError:
                return ""
        return self._names[number]

    def close(self) -> None:
        """Stop reading. Idempotent."""
        self._over.set()
        self._thread.join()
        self._perf.close()
