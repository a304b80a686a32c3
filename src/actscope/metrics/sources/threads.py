"""Counts of threads: off-CPU time by cause, and page faults. What collectors return, and what /proc knows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actscope.metrics.lines import Source

#: Why a thread is not on a CPU, in the order of system.bpf.c: it could run, but another one does; it waits for a disk; for a lock
#: (futex, or one of the kernel's); it sleeps for a time; it waits for another's doing (socket, pipe, poll, child); a page is
#: brought in; it is stopped. Without programs in the kernel, what is neither `runnable` nor `io` is `other`.
CAUSES = ("runnable", "io", "lock", "sleep", "wait", "fault", "stopped")
_PROC_CAUSES = (*CAUSES, "other")
_PF_KTHREAD = 0x00200000
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ThreadCounts:
    """Counts of one thread.

    Attributes:
        pid: Its process.
        off_ns: uint64 [7] or [8]: ns off the CPU by cause (`CAUSES`, then `other`).
        start: Tells threads apart that had the same TID.
        on_ns: ns on a CPU in its life, when it last left one; 0: not known.
    """

    pid: int
    name: str
    faults: int
    off_ns: np.ndarray
    start: int
    on_ns: int = 0


@dataclass(frozen=True, slots=True)
class WakeCounts:
    """How often one thread ended waits of another, and how long those had lasted."""

    pid: int
    name: str
    count: int
    waited_ns: int


@dataclass(slots=True)
class SystemSnapshot:
    """All counts at one moment. Differences of two of them are what happened between.

    Attributes:
        threads: Counts by TID.
        wakes: By TID and the TID of the waker.
        long_waits: Count and ns of long waits by TID, stack and cause.
        losses: Events that were not counted, by reason.
    """

    monotonic_ns: int
    threads: dict[int, ThreadCounts]
    wakes: dict[tuple[int, int], WakeCounts] = field(default_factory=dict)
    long_waits: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


class SystemSource(Protocol):
    """Where counts of threads come from."""

    rung: Source

    def watch(self, pids: Iterable[int]) -> None:
        """Count the threads of these processes one by one."""

    def snapshot(self) -> SystemSnapshot:
        """Return all counts."""

    def stack(self, number: int) -> list[int]:
        """Return the addresses of a kernel stack."""

    def close(self) -> None:
        """Stop counting. Idempotent."""


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What /proc/<pid>/task/<tid>/stat says."""

    name: str
    letter: str
    faults: int
    io_ns: int
    start: int
    is_kernel: bool


def thread_state(pid: int, tid: int) -> ThreadState | None:
    """Return the state of a thread, or None if it has ended or is hidden from us."""
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", errors="replace") as file:
            head, _, rest = file.read().rpartition(")")
    except OSError:
        return None
    fields = rest.split()
    if len(fields) < 40:
        return None
    return ThreadState(
        head.partition("(")[2],
        fields[0],
        int(fields[7]) + int(fields[9]),
        int(fields[39]) * _TICK_NS,
        int(fields[19]),
        bool(int(fields[6]) & _PF_KTHREAD),
    )


class ProcSystem:
    """Counts of /proc: off-CPU time is the time that passed, less that on a CPU, and page faults include those in the kernel.

    Args:
        only: Processes to count; None: all.
    """

    rung: Source = "proc"

    def __init__(self, only: Iterable[int] | None = None) -> None:
        self._only = None if only is None else set(only)

    def watch(self, pids: Iterable[int]) -> None:
        """Do nothing: all threads are counted one by one."""

    def snapshot(self) -> SystemSnapshot:
        """Return all counts."""
        began = time.monotonic_ns()
        pids = (
            [int(name) for name in os.listdir("/proc") if name.isdigit()] if self._only is None else sorted(self._only)
        )
        threads = {}
        for pid in pids:
            threads.update(self._threads(pid))
        return SystemSnapshot(began, threads)

    def _threads(self, pid: int) -> dict[int, ThreadCounts]:
        found = {}
        try:
            tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        except OSError:
            return {}
        for tid in tids:
            state = thread_state(pid, tid)
            if state is None:
                continue
            if state.is_kernel:
                return {}
            off, on = _off_and_on_ns(pid, tid, state)
            found[tid] = ThreadCounts(pid, state.name, state.faults, off, state.start, on)
        return found

    def stack(self, number: int) -> list[int]:
        """Return nothing: /proc has no stacks of the past."""
        return []

    def close(self) -> None:
        """Do nothing."""


def _off_and_on_ns(pid: int, tid: int, state: ThreadState) -> tuple[np.ndarray, int]:
    """Return ns off the CPU by cause since the thread began, uint64 [8], and ns on one."""
    try:
        with open(f"/proc/{pid}/task/{tid}/schedstat") as file:
            on_cpu, delayed = map(int, file.read().split()[:2])
    except (OSError, ValueError):
        on_cpu = delayed = 0
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    off = max(now - state.start * _TICK_NS - on_cpu, 0)
    row = np.zeros(len(_PROC_CAUSES), np.uint64)
    row[0], row[1] = delayed, state.io_ns
    row[-1] = max(off - delayed - state.io_ns, 0)
    return row, on_cpu


def by_cause(off_ns: np.ndarray) -> dict[str, int]:
    """Return the ns of each cause that has some."""
    return {cause: int(ns) for cause, ns in zip(_PROC_CAUSES, off_ns.tolist(), strict=False) if ns}
