"""Which process owns something, told apart from a later process with the same number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: States of /proc/<pid>/stat in which a process will never run again: zombie, dead.
_GONE = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number, when it started (clock ticks since boot), and its pid namespace (0: unknown)."""

    pid: int
    start: int
    namespace: int = 0

    @classmethod
    def current(cls) -> Process:
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0, pid_namespace())

    @property
    def visible(self) -> bool:
        """False for a process of another container, whose number means nothing here."""
        return self.namespace in (0, pid_namespace())

    def alive(self) -> bool:
        """Whether it still runs; True also for one that is not visible from here, since it cannot be told."""
        return not self.visible or process_start(self.pid) == self.start


def process_start(pid: int) -> int | None:
    """Start time of a running process (field 22 of /proc/<pid>/stat); None when there is none, or a zombie."""
    fields = stat_fields(pid)
    return None if not fields or fields[0] in _GONE else int(fields[19])


def parent_of(pid: int) -> int:
    """Return the parent's process id (field 4 of /proc/<pid>/stat); 0 when the process has ended."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third one (the state) on; empty when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the command's name may hold anything, spaces and brackets too


def pid_namespace() -> int:
    """The inode of our pid namespace, or 0 where there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
