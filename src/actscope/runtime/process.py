"""Process identity that survives reuse of process ids: pid, start time and pid namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: States in /proc/<pid>/stat of a process that will never run again: zombie, dead.
_GONE = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified so that a later process with the same pid differs.

    Attributes:
        pid: Process id.
        start: Start time in clock ticks since boot.
        namespace: Inode of its pid namespace; 0 if unknown.
    """

    pid: int
    start: int
    namespace: int = 0

    @classmethod
    def current(cls) -> Process:
        """Return the identity of the calling process."""
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0, pid_namespace())

    @property
    def visible(self) -> bool:
        """Whether the process is in our pid namespace. The pid of another container's process means nothing here."""
        return self.namespace in (0, pid_namespace())

    def alive(self) -> bool:
        """Return whether the process still runs. True also for a process that is not visible, as its state is unknown."""
        return not self.visible or process_start(self.pid) == self.start


def process_start(pid: int) -> int | None:
    """Return a running process's start time in clock ticks since boot; None if there is no such process or it is a zombie.

    It is field 22 of /proc/<pid>/stat.
    """
    fields = stat_fields(pid)
    return None if not fields or fields[0] in _GONE else int(fields[19])


def parent_of(pid: int) -> int:
    """Return the parent's process id (field 4 of /proc/<pid>/stat), or 0 if the process has ended."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (the state) on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the command's name may contain anything, including spaces and parentheses


def pid_namespace() -> int:
    """Return the inode of our pid namespace, or 0 if it cannot be read."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
