"""Settings of the collectors. They load without numpy, for the flags that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actscope.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """Measuring at intervals.

    Raises:
        SettingsError: A value is out of range.
    """

    interval: float = 5.0
    """Seconds between two lines."""
    count: int = 0
    """Number of lines. 0: until it is interrupted."""
    source: Literal["auto", "bpf", "perf", "proc"] = "auto"
    """How to measure: by programs in the kernel (bpf) or tracepoints (perf, of io alone), which need root, or from
    /proc alone. auto: the best that works here."""
    cost: bool = False
    """Measure what the collector itself costs, and add it to each line."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.interval <= 86400:
            raise SettingsError(f"interval: expected 0.01 to 86400 seconds, found {self.interval:g}")
        if self.count < 0:
            raise SettingsError(f"count: expected 0 or more, found {self.count}")


@dataclass(frozen=True, slots=True)
class WaitSettings:
    """What is measured of processes.

    Raises:
        SettingsError: A value is out of range.
    """

    pid: tuple[int, ...] = ()
    """Process to measure, and no others. Repeatable. By default all, and the threads of running engines and of writers."""
    stacks_over: float = 0.0
    """Keep the kernel stacks of waits of watched threads that last longer than this many ms. 0: none."""

    def __post_init__(self) -> None:
        if any(not 0 < pid <= 1 << 22 for pid in self.pid):
            raise SettingsError(f"pid: expected numbers of processes, found {', '.join(map(str, self.pid))}")
        if not 0 <= self.stacks_over <= 60_000:
            raise SettingsError(f"stacks_over: expected 0 to 60000 ms, found {self.stacks_over:g}")


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """The file of measurements.

    Raises:
        SettingsError: A value is out of range.
    """

    output: str = ""
    """File that the lines are appended to. By default tracepoints.jsonl (io) or system_metrics.jsonl (system)."""
    no_output: bool = False
    """Write no file."""
    flush_every: int = 12
    """Number of lines that are written at once."""
    fsync: bool = False
    """Make lines durable each time they are written."""
    rotate_bytes: int = 64 << 20
    """Size from which the file is renamed to FILE.1 and a new one begun. 0: never."""
    keep: int = 8
    """Number of renamed files that are kept."""

    def __post_init__(self) -> None:
        if self.flush_every < 1:
            raise SettingsError(f"flush_every: expected 1 or more, found {self.flush_every}")
        if self.rotate_bytes < 0:
            raise SettingsError(f"rotate_bytes: expected 0 or more, found {self.rotate_bytes}")
        if not 1 <= self.keep <= 1000:
            raise SettingsError(f"keep: expected 1 to 1000, found {self.keep}")

    def path(self, default: str) -> Path | None:
        """Return the file to write, or None for none."""
        return None if self.no_output else Path(self.output or default)
