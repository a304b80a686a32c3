"""What a collector itself costs: CPU time of its process and of its programs in the kernel."""

from __future__ import annotations

import os
import resource
import time

from actscope.metrics.bpf.loaded import LoadedObject
from actscope.metrics.lines import CollectorCost, ProgramShare

_PAGE = os.sysconf("SC_PAGESIZE")


class CostMeter:
    """Measures the cost since the last call.

    Args:
        loaded: The programs in the kernel, or None.

    While it is open, the kernel times all BPF programs of the machine, which costs some 20 ns a run.
    """

    def __init__(self, loaded: LoadedObject | None) -> None:
        self._loaded = loaded
        self._timed = loaded is not None and loaded.measure_cost()
        self._last = self._now()

    def measure(self) -> CollectorCost:
        """Return the cost since the last call, or since this was made."""
        before, now = self._last, self._now()
        self._last = now
        wall, process = max(now[0] - before[0], 1), now[1] - before[1]
        programs = {
            name: (runs - before[2].get(name, (0, 0))[0], ns - before[2].get(name, (0, 0))[1])
            for name, (runs, ns) in now[2].items()
        }
        kernel = 100 * sum(ns for _, ns in programs.values()) / wall
        own = 100 * process / wall
        return CollectorCost(
            cpu_percent=round(own + kernel, 4),
            process_percent=round(own, 4),
            kernel_percent=round(kernel, 4) if self._timed else None,
            memory_mb=round(_resident_bytes() / 1e6, 1),
            programs={name: ProgramShare(runs, round(ns / runs, 1)) for name, (runs, ns) in programs.items() if runs},
        )

    def _now(self) -> tuple[int, int, dict[str, tuple[int, int]]]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        process = int((usage.ru_utime + usage.ru_stime) * 1e9)
        costs = self._loaded.costs() if self._loaded else []
        return time.monotonic_ns(), process, {one.name: (one.runs, one.run_ns) for one in costs}


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
