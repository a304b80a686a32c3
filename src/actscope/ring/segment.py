"""A ring's segment: a memory-mapped file in /dev/shm, with a view of each of its areas.

`multiprocessing.shared_memory` is not used because before Python 3.13 a process that merely attaches unlinks the
segment when it exits (CPython #82300).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import time
from pathlib import Path

import numpy as np

from actscope.errors import RingError
from actscope.frames import ROW_META
from actscope.ring.layout import DATA_OFFSET, HEADER_BYTES, SPAN, STEP, Header, RingSpec, Word, owner_of
from actscope.runtime.private_files import open_private
from actscope.runtime.process import Process

OPAQUE_META = np.dtype(f"V{ROW_META.itemsize}")

SHM_DIR = Path("/dev/shm")
#: From this age of its heartbeat on, a writer whose process cannot be checked counts as dead.
FOREIGN_SILENCE_NS = 30_000_000_000
SEGMENT_NAME = re.compile(r"actscope-(\d{1,10})-[0-9a-f]{16}")


def segment_path(name: str) -> Path:
    """Return the path of the segment `name`. Raises RingError unless it is a segment name of this user."""
    match = SEGMENT_NAME.fullmatch(name)
    if match is None or int(match[1]) != os.geteuid():
        raise RingError(f"ring {name[:64]!r}: expected a name like actscope-{os.geteuid()}-<16 hex digits>")
    return SHM_DIR / name


def read_header(name: str) -> Header:
    """Read and validate a segment's header without mapping the segment."""
    fd = open_private(segment_path(name), os.O_RDONLY)
    try:
        return _checked_header(name, fd)
    finally:
        os.close(fd)


def read_owner(name: str) -> Process | None:
    """Return the process that created a segment, of any version of the layout; None if the header is not a ring's.

    Raises RingError if the segment cannot be opened.
    """
    fd = open_private(segment_path(name), os.O_RDONLY)
    try:
        owner = owner_of(os.pread(fd, HEADER_BYTES, 0))
    finally:
        os.close(fd)
    return None if owner is None else Process(*owner)


def read_heartbeat(name: str) -> int:
    """Return the time of the writer's last step or beat, CLOCK_MONOTONIC in ns. Raises RingError as `is_locked` does."""
    fd = open_private(segment_path(name), os.O_RDONLY)
    try:
        return int.from_bytes(os.pread(fd, 8, 8 * Word.HEARTBEAT_NS), "little")
    finally:
        os.close(fd)


def is_locked(name: str) -> bool:
    """Return whether the writer of a segment lives: it holds a lock on the file (`flock`), whatever its pid namespace.

    The kernel releases the lock with the writer's last process. Raises RingError if the segment cannot be opened.
    """
    fd = open_private(segment_path(name), os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _checked_header(name: str, fd: int) -> Header:
    header = Header.unpack(os.pread(fd, HEADER_BYTES, 0), name)
    size = os.fstat(fd).st_size
    if size != header.spec.segment_bytes:
        raise RingError(f"{name}: the file has {size} bytes, its header says {header.spec.segment_bytes}: remove it")
    return header


class Segment:
    """One process's mapping of a ring; a reader's is read-only.

    `words` is a view of the 64-bit counters, each loaded and stored by one instruction. `steps` and `spans` are
    memoryviews, which copy few small records faster than numpy arrays do. `meta` is an array of opaque records, which
    numpy copies as plain memory; structured records would be copied field by field, 18 times slower.
    """

    def __init__(self, name: str, header: Header, fd: int, *, writable: bool) -> None:
        self._lock: int | None = None
        self.name = name
        self.header = header
        self.spec = spec = header.spec
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if writable else 0)
        self._map = mmap.mmap(fd, spec.segment_bytes, flags=flags, prot=protection)
        self.bytes = memoryview(self._map)
        self.words = self.bytes[:DATA_OFFSET].cast("Q")
        self.steps = self.bytes[DATA_OFFSET:][: spec.step_capacity * STEP.itemsize]
        self.spans = self.bytes[spec.spans_offset :][: spec.span_capacity * SPAN.itemsize]
        self.meta = np.frombuffer(self._map, OPAQUE_META, spec.row_capacity, spec.meta_offset)
        values = np.frombuffer(self._map, spec.row_dtype, spec.row_capacity * spec.width, spec.rows_offset)
        self.rows = values.reshape(spec.row_capacity, spec.width)
        start = np.frombuffer(self._map, np.uint8, DATA_OFFSET).__array_interface__["data"][0]
        self.published_address: int = start + 8 * Word.STEPS_PUBLISHED  # low half of the word: little-endian

    @classmethod
    def create(cls, spec: RingSpec) -> Segment:
        """Create a segment under a random name and allocate its memory. Raises RingError if that fails."""
        name = f"actscope-{os.geteuid()}-{secrets.token_hex(8)}"
        owner = Process.current()
        header = Header(spec, owner.pid, owner.start, owner.namespace, time.monotonic_ns())
        path = segment_path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RingError(
                f"{path}: cannot be created ({error.strerror}): scores need {SHM_DIR}: mount a tmpfs there"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            segment = cls._fill(name, header, fd)
        except (OSError, ValueError) as error:
            os.close(fd)
            unlink(name)
            raise RingError(
                f"{path}: no room for {spec.segment_bytes} bytes ({error}): make the ring smaller, or {SHM_DIR} larger"
            ) from error
        segment._lock = fd  # open as long as the segment is: see `is_locked`
        return segment

    @classmethod
    def _fill(cls, name: str, header: Header, fd: int) -> Segment:
        os.pwrite(fd, header.pack(), 0)  # first, so that `sweep` always finds the owner
        os.posix_fallocate(fd, 0, header.spec.segment_bytes)  # else a full tmpfs raises SIGBUS during a step
        return cls(name, header, fd, writable=True)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Validate another process's segment and map it read-only. Raises RingError if it is missing or malformed."""
        fd = open_private(segment_path(name), os.O_RDONLY)
        try:
            return cls(name, _checked_header(name, fd), fd, writable=False)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap the segment. A view that is still referenced elsewhere keeps the memory mapped until it is released."""
        del self.meta, self.rows
        for view in (self.words, self.steps, self.spans, self.bytes):
            view.release()
        with contextlib.suppress(BufferError):  # a copy in progress in another thread keeps the map until it ends
            self._map.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def unlink(name: str) -> bool:
    """Remove a segment's name; existing mappings stay valid. Returns False if there was no such segment."""
    try:
        os.unlink(segment_path(name))
    except FileNotFoundError:
        return False
    return True
