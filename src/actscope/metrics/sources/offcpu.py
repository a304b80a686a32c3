"""Page faults and off-CPU time of threads by cause, counted by programs in the kernel (system.bpf.o)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable

import numpy as np

from actscope.errors import MetricsError
from actscope.metrics.bpf.loaded import LoadedObject
from actscope.metrics.lines import Source
from actscope.metrics.sources.kernel import kernel_has
from actscope.metrics.sources.threads import CAUSES, SystemSnapshot, ThreadCounts, WakeCounts, thread_state

_THREAD = np.dtype(
    [
        ("out_ns", "<u8"),
        ("woken_ns", "<u8"),
        ("faults", "<u8"),
        ("off_ns", "<u8", len(CAUSES)),
        ("switches", "<u8"),
        ("start_time", "<u8"),
        ("exec_ns", "<u8"),
        ("tgid", "<u4"),
        ("cause", "<u4"),
        ("waker", "<u4"),
        ("waker_tgid", "<u4"),
        ("stack", "<i4"),
        ("gone", "<u4"),
        ("waker_comm", "S16"),
        ("comm", "S16"),
    ]
)
_WAKE_KEY = np.dtype([("tid", "<u4"), ("waker", "<u4")])
_WAKE = np.dtype([("count", "<u8"), ("waited_ns", "<u8"), ("waker_tgid", "<u4"), ("unused", "<u4"), ("comm", "S16")])
_LONG_KEY = np.dtype([("tid", "<u4"), ("stack", "<i4"), ("cause", "<u4")])
_LONG = np.dtype([("count", "<u8"), ("waited_ns", "<u8")])
#: Why an event was not counted, in the order of system.bpf.c.
_LOSSES = ("threads_full", "stacks_full", "threads_reused", "switches_unseen")
#: Offsets of the constants of system.bpf.c.
_ONLY_WATCHED, _STACKS_OVER_US = 0, 4
_RUNNABLE = CAUSES.index("runnable")
#: System calls in which an interruptible wait is for a lock, or is a sleep. In all others it is a wait for another's doing.
_SYSCALLS = {
    "x86_64": {"lock": (65, 73, 202, 220, 449, 455, 456), "sleep": (35, 230)},
    "aarch64": {"lock": (32, 98, 192, 193, 449, 455, 456), "sleep": (101, 115)},
}


class BpfSystem:
    """Counts of system.bpf.o.

    Args:
        watched: Processes whose threads are counted one by one.
        only_watched: Count no other processes.
        stacks_over_ms: Keep the kernel stacks of waits of watched threads that last longer. 0: none.

    Raises:
        MetricsError: The programs cannot be loaded or attached.
    """

    rung: Source = "bpf"

    def __init__(self, watched: Iterable[int] = (), *, only_watched: bool = False, stacks_over_ms: float = 0.0) -> None:
        constants = {_ONLY_WATCHED: int(only_watched), _STACKS_OVER_US: int(stacks_over_ms * 1000)}
        self.loaded = _load(constants)
        self._switches: dict[int, int] = {}
        self._seen: dict[tuple[int, int], np.ndarray] = {}
        try:
            self._set_causes()
            self.watch(watched)
            self.loaded.attach()
            self._seed(watched if only_watched else None)
        except BaseException:
            self.close()
            raise

    def watch(self, pids: Iterable[int]) -> None:
        """Count the threads of these processes one by one from now on."""
        for pid in pids:
            self.loaded.map("watched").put(pid.to_bytes(4, "little"), bytes(4))

    def _set_causes(self) -> None:
        causes = self.loaded.map("causes")
        known = _SYSCALLS.get(platform.machine(), {})
        for call in range(512):
            cause = next((cause for cause, calls in known.items() if call in calls), "wait")
            causes.put(call.to_bytes(4, "little"), CAUSES.index(cause).to_bytes(4, "little"))

    def _seed(self, pids: Iterable[int] | None) -> None:
        """Enter threads that wait already, so that their wait is counted from now on and not from its end.

        A thread that the programs have seen meanwhile has its entry, which stays.
        """
        entries = self.loaded.map("threads")
        for pid in _pids() if pids is None else pids:
            for tid in _tids(pid):
                state = thread_state(pid, tid)
                if state is None or state.is_kernel or state.letter not in "SDTt":
                    continue
                one = np.zeros((), _THREAD)
                one["out_ns"], one["tgid"], one["stack"], one["comm"] = (
                    time.monotonic_ns(),
                    pid,
                    -1,
                    state.name.encode(),
                )
                one["cause"] = CAUSES.index(_cause_of(pid, tid, state.letter))
                entries.put(tid.to_bytes(4, "little"), one.tobytes(), only_new=True)

    def snapshot(self) -> SystemSnapshot:
        """Return all counts. Threads that have ended are in it for the last time. Raises MetricsError if a map cannot be read."""
        entries = self.loaded.map("threads")
        keys, values = entries.read()
        now = time.monotonic_ns()
        tids, rows = np.frombuffer(keys, "<u4"), np.frombuffer(values, _THREAD)
        totals = _with_running_waits(rows, now)
        threads = {}
        for i, (tid, row) in enumerate(zip(tids.tolist(), rows, strict=True)):
            key = (tid, int(row["start_time"]))
            # a wait that ended between the reads of its parts is in neither: it is counted the next time, and nothing twice
            off = np.maximum(totals[i], self._seen.get(key, totals[i]))
            threads[tid] = ThreadCounts(
                int(row["tgid"]),
                row["comm"].decode(errors="replace"),
                int(row["faults"]),
                off,
                key[1],
                int(row["exec_ns"]),
            )
            if row["gone"] or self._is_gone(tid, row):
                entries.remove(keys[4 * i : 4 * i + 4])
        self._seen = {(tid, one.start): one.off_ns for tid, one in threads.items()}
        self._switches = dict(zip(tids.tolist(), rows["switches"].tolist(), strict=True))
        return SystemSnapshot(now, threads, self._wakes(), self._long_waits(), self._losses())

    def _is_gone(self, tid: int, row: np.void) -> bool:
        """Return whether a thread that has not run since the last time has ended unseen."""
        return self._switches.get(tid) == int(row["switches"]) and not os.path.exists(f"/proc/{tid}")

    def _wakes(self) -> dict[tuple[int, int], WakeCounts]:
        keys, values = self.loaded.map("wakes").read()
        pairs, rows = np.frombuffer(keys, _WAKE_KEY), np.frombuffer(values, _WAKE)
        return {
            (int(pair["tid"]), int(pair["waker"])): WakeCounts(
                int(row["waker_tgid"]),
                row["comm"].decode(errors="replace"),
                int(row["count"]),
                int(row["waited_ns"]),
            )
            for pair, row in zip(pairs, rows, strict=True)
        }

    def _long_waits(self) -> dict[tuple[int, int, int], tuple[int, int]]:
        keys, values = self.loaded.map("long_waits").read()
        where, rows = np.frombuffer(keys, _LONG_KEY), np.frombuffer(values, _LONG)
        return {
            (int(key["tid"]), int(key["stack"]), int(key["cause"])): (int(row["count"]), int(row["waited_ns"]))
            for key, row in zip(where, rows, strict=True)
        }

    def stack(self, number: int) -> list[int]:
        """Return the addresses of a kernel stack, from the innermost function on; empty if it was dropped."""
        value = self.loaded.map("stacks").get(number.to_bytes(4, "little", signed=True)) or b""
        return [address for address in np.frombuffer(value, "<u8").tolist() if address]

    def _losses(self) -> dict[str, int]:
        map_ = self.loaded.map("losses")
        values = {name: map_.get(i.to_bytes(4, "little")) for i, name in enumerate(_LOSSES)}
        found = {name: int.from_bytes(value or b"", "little") for name, value in values.items()}
        found["events_skipped_by_kernel"] = sum(cost.missed for cost in self.loaded.costs())
        return found

    def close(self) -> None:
        """Detach the programs. Idempotent."""
        self.loaded.close()


def _load(constants: dict[int, int]) -> LoadedObject:
    """Load the programs: with the state that sched_switch hands over, or for older kernels without."""
    missing = frozenset({"page_fault_user"} if not kernel_has("page_fault_user") else ())
    try:
        return LoadedObject("system", constants, leave_out=missing | {"sched_switch_3"})
    except MetricsError as error:
        try:
            return LoadedObject("system", constants, leave_out=missing | {"sched_switch"})
        except MetricsError:
            raise error from None


def _with_running_waits(rows: np.ndarray, now: int) -> np.ndarray:
    """Return the ns off the CPU by cause of each thread, with the wait that it is in: uint64 [n, causes]."""
    off = rows["off_ns"].copy()
    waiting = (rows["out_ns"] > 0) & (rows["out_ns"] < now)
    woken = np.where(
        (rows["woken_ns"] >= rows["out_ns"]) & (rows["woken_ns"] > 0) & (rows["woken_ns"] < now), rows["woken_ns"], now
    )
    at = np.flatnonzero(waiting)
    causes = np.minimum(rows["cause"][at], len(CAUSES) - 1)
    off[at, causes] += (woken[at] - rows["out_ns"][at]).astype(np.uint64)
    off[at, _RUNNABLE] += (now - woken[at]).astype(np.uint64)
    return off


def _cause_of(pid: int, tid: int, letter: str) -> str:
    """Return the cause of a wait that began before the programs were attached, from /proc."""
    if letter in "Tt":
        return "stopped"
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall") as file:
            call = file.read().split()[0]
    except (OSError, IndexError):
        call = ""
    if letter == "D":
        return "fault" if call == "-1" else "io"
    known = _SYSCALLS.get(platform.machine(), {})
    return next((cause for cause, calls in known.items() if call.isdigit() and int(call) in calls), "wait")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _tids(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
