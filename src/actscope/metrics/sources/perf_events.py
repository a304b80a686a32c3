"""Tracepoints read through perf: events of all CPUs, in the order of time. Nothing stays in the kernel when the process ends."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actscope.errors import MetricsError

#: Where tracefs is mounted.
_MOUNTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_TRACEPOINT = 2
_SAMPLE_TIME, _SAMPLE_RAW = 1 << 2, 1 << 10
#: Bits of `perf_event_attr`: disabled, use_clockid. Events are switched on once their buffer is there.
_DISABLED, _USE_CLOCKID = 1 << 0, 1 << 25
_FLAG_CLOEXEC = 1 << 3
_ENABLE, _SET_OUTPUT = 0x2400, 0x2405
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
#: Offsets in the first page of a buffer (`struct perf_event_mmap_page`).
_HEAD, _TAIL = 1024, 1032
_HEADER = struct.Struct("<IHH")


class PerfAttributes(ctypes.Structure):
    """`struct perf_event_attr` of linux/perf_event.h, in its fifth version (112 bytes)."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("size", ctypes.c_uint32), ("config", ctypes.c_uint64), ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64), ("read_format", ctypes.c_uint64), ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32), ("bp_type", ctypes.c_uint32), ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64), ("branch_sample_type", ctypes.c_uint64), ("sample_regs_user", ctypes.c_uint64),
        ("sample_stack_user", ctypes.c_uint32), ("clockid", ctypes.c_int32), ("sample_regs_intr", ctypes.c_uint64),
        ("aux_watermark", ctypes.c_uint32), ("sample_max_stack", ctypes.c_uint16), ("reserved", ctypes.c_uint16),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PerfSample:
    """One event: CLOCK_MONOTONIC in nanoseconds, the tracepoint's number, and its fields as the kernel lays them out."""

    time_ns: int
    tracepoint: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class TracepointFormat:
    """A tracepoint: its number, and offset and size of each of its fields."""

    number: int
    fields: dict[str, tuple[int, int]]

    def value(self, raw: bytes, field: str) -> int:
        """Return an unsigned number."""
        offset, size = self.fields[field]
        return int.from_bytes(raw[offset : offset + size], "little")

    def text(self, raw: bytes, field: str) -> str:
        """Return a text up to its first NUL."""
        offset, size = self.fields[field]
        return raw[offset : offset + size].split(b"\0", 1)[0].decode(errors="replace")


def tracepoint(group: str, name: str) -> TracepointFormat:
    """Return the format of a tracepoint.

    Raises:
        MetricsError: tracefs is not mounted, or is not to be read.
    """
    for mount in _MOUNTS:
        try:
            text = (mount / "events" / group / name / "format").read_text()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MetricsError(f"needs to read {mount}, found: {error.strerror}: run it with sudo") from error
        return _parsed(text)
    raise MetricsError(f"needs tracefs with events/{group}/{name}, which is not to be found: sudo {_MOUNT}")


def _parsed(text: str) -> TracepointFormat:
    fields: dict[str, tuple[int, int]] = {}
    number = 0
    for line in text.splitlines():
        if line.startswith("ID:"):
            number = int(line[3:])
        elif line.strip().startswith("field:"):
            what, offset, size, *_ = (part.strip() for part in line.split(";"))
            name = what.split()[-1].partition("[")[0]
            fields[name] = (int(offset.removeprefix("offset:")), int(size.removeprefix("size:")))
    return TracepointFormat(number, fields)


class PerfTracepoints:
    """Some tracepoints on all CPUs, one buffer a CPU. Used by one thread.

    Args:
        numbers: Numbers of the tracepoints.
        pages: Pages of each buffer, a power of 2.

    Raises:
        MetricsError: The kernel refuses.
    """

    def __init__(self, numbers: tuple[int, ...], pages: int = 256) -> None:
        self._call = _SYSCALLS.get(platform.machine())
        if self._call is None:
            raise MetricsError(f"perf events are read on x86_64 and aarch64; this is {platform.machine()}")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fds: list[int] = []
        self._buffers: list[mmap.mmap] = []
        self._waiting: list[PerfSample] = []
        self._size = pages * mmap.PAGESIZE
        self.lost = 0
        try:
            for cpu in _online():
                self._open(cpu, numbers)
            for fd in self._fds:
                self._control(fd, _ENABLE, 0)
        except BaseException:
            self.close()
            raise

    def _open(self, cpu: int, numbers: tuple[int, ...]) -> None:
        first = None
        for number in numbers:
            attributes = PerfAttributes(
                type=_TRACEPOINT, size=ctypes.sizeof(PerfAttributes), config=number, sample_period=1,
                sample_type=_SAMPLE_TIME | _SAMPLE_RAW, flags=_DISABLED | _USE_CLOCKID, clockid=time.CLOCK_MONOTONIC,
            )  # fmt: skip
            fd: int = self._libc.syscall(self._call, ctypes.byref(attributes), -1, cpu, -1, _FLAG_CLOEXEC)
            if fd < 0:
                raise _refusal()
            self._fds.append(fd)
            if first is None:
                first = fd
                self._buffers.append(mmap.mmap(fd, self._size + mmap.PAGESIZE))
            else:
                self._control(fd, _SET_OUTPUT, first)

    def _control(self, fd: int, request: int, argument: int) -> None:
        if self._libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_long(argument)):
            raise _refusal()

    def read(self) -> list[PerfSample]:
        """Return the events between the last call and this one, in the order of time. `lost` counts those that were missed."""
        now = time.monotonic_ns()
        for buffer in self._buffers:
            self._waiting += self._drain(buffer)
        self._waiting.sort(key=lambda one: one.time_ns)
        # a later one of another CPU may not be in its buffer yet
        ready = [one for one in self._waiting if one.time_ns <= now]
        self._waiting = self._waiting[len(ready) :]
        return ready

    def _drain(self, buffer: mmap.mmap) -> Iterator[PerfSample]:
        head, tail = (int.from_bytes(buffer[at : at + 8], "little") for at in (_HEAD, _TAIL))
        data = self._bytes(buffer, tail, head)
        at = 0
        while at + _HEADER.size <= len(data):
            kind, _, size = _HEADER.unpack_from(data, at)
            if size < _HEADER.size:
                break
            body = data[at + _HEADER.size : at + size]
            if kind == _RECORD_SAMPLE:
                when, length = struct.unpack_from("<QI", body)
                raw = body[12 : 12 + length]
                yield PerfSample(when, int.from_bytes(raw[:2], "little"), raw)
            elif kind == _RECORD_LOST:
                self.lost += int.from_bytes(body[8:16], "little")
            at += size
        buffer[_TAIL : _TAIL + 8] = head.to_bytes(8, "little")

    def _bytes(self, buffer: mmap.mmap, tail: int, head: int) -> bytes:
        start, stop, page = tail % self._size, head % self._size, mmap.PAGESIZE
        if head == tail:
            return b""
        if start < stop:
            return buffer[page + start : page + stop]
        return buffer[page + start : page + self._size] + buffer[page : page + stop]

    def close(self) -> None:
        """Stop. Idempotent."""
        while self._buffers:
            self._buffers.pop().close()
        while self._fds:
            os.close(self._fds.pop())


def _refusal() -> MetricsError:
    code = ctypes.get_errno()
    what = "run it with sudo, or sysctl kernel.perf_event_paranoid=-1" if code in (errno.EACCES, errno.EPERM) else ""
    return MetricsError(
        f"the kernel does not let perf read tracepoints: {os.strerror(code)}" + (f": {what}" if what else "")
    )


def _online() -> list[int]:
    """Return the numbers of the CPUs that are online, such as of "0-3,6"."""
    found: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
