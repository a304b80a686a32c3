"""Watermark file: the writer's acknowledged positions, and the lock on the recording.

    0    slot 0   512 bytes: SLOT, zeros, CRC32C of the 508 bytes before     ┐ written alternately, so one
    512  slot 1   the same                                                   ┘ slot is valid at any time

Writing a slot fills the page cache, so it survives kill -9. `sync` makes it survive power loss. The file is never renamed
or replaced, so a lock on it is a lock on the recording.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from actscope.errors import RecordingError
from actscope.runtime import boot
from actscope.runtime.publish import write_all
from actscope.store.files import naming, read_file
from actscope.store.format.checksum import crc32c_of

NAME = "watermark"
SLOT_BYTES = 512
FILE_BYTES = 2 * SLOT_BYTES
SLOT = struct.Struct("<8sHHIIIQQIQQIQ16s")
MAGIC = b"ACTSMARK"
VERSION = 1
CLOSED = 1
RETRIES = 5  # of a read that may race with a write


@cache
def boot_id() -> bytes:
    """Return the machine's boot id, 16 bytes (zeros: unknown). Bytes written but not durable do not survive a reboot."""
    try:
        return bytes.fromhex(boot.boot_id().replace("-", ""))[:16].ljust(16, b"\0")
    except ValueError:
        return bytes(16)


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """End of a message: its number, its segment, and the offset after it in the segment."""

    number: int = 0
    segment: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Watermark:
    """A slot. Messages up to `written` survive kill -9; messages up to `durable` survive power loss.

    Attributes:
        recording: Id of the recording, 32 bits.
        manifest_crc: CRC32C of the manifest.
        pid: Process id of the writer.
        sequence: Number of the write of a slot, from 0. The valid slot with the higher number is in force.
        closed: Whether the writer closed the recording.
        written: End of the last message that is in the file.
        durable: End of the last message that survives power loss.
        boot: Boot id of the machine when the slot was written, 16 bytes; zeros if unknown.
    """

    recording: int
    manifest_crc: int
    pid: int = 0
    sequence: int = 0
    closed: bool = False
    written: LogPosition = field(default=LogPosition())
    durable: LogPosition = field(default=LogPosition())
    boot: bytes = bytes(16)

    @property
    def acknowledged(self) -> LogPosition:
        """Return the position up to which messages must exist: `written` if closed or in the same boot, else `durable`."""
        return self.written if self.closed or self.boot == boot_id() else self.durable

    def write(self) -> bytes:
        """Encode the slot: 512 bytes."""
        flags = CLOSED if self.closed else 0
        w, d = self.written, self.durable
        fields = (self.pid, self.recording, self.manifest_crc, self.sequence)
        places = (w.number, w.segment, w.offset, d.number, d.segment, d.offset)
        body = SLOT.pack(MAGIC, VERSION, flags, *fields, *places, self.boot).ljust(SLOT_BYTES - 4, b"\0")
        return body + crc32c_of((body,)).to_bytes(4, "little")

    @classmethod
    def read(cls, data: bytes) -> Watermark | None:
        """Decode a slot of 512 bytes. Return None when it is not valid."""
        if len(data) != SLOT_BYTES or crc32c_of((data[:-4],)).to_bytes(4, "little") != data[-4:]:
            return None
        magic, version, flags, pid, recording, crc, sequence, *places, boot = SLOT.unpack_from(data)
        if magic != MAGIC or version != VERSION or flags & ~CLOSED:
            return None
        return cls(recording, crc, pid, sequence, bool(flags), LogPosition(*places[:3]), LogPosition(*places[3:]), boot)


@dataclass(frozen=True, slots=True)
class WatermarkState:
    """Content of the file: the newest valid slot, and a description of any fault."""

    newest: Watermark | None
    fault: str = ""

    @classmethod
    def read(cls, directory: Path) -> WatermarkState:
        """Read the file. Never raises for its content. Retries to avoid a slot that is being written."""
        for _ in range(RETRIES):
            try:
                state = cls.judge(read_file(directory / NAME, FILE_BYTES + 1))
            except FileNotFoundError:
                return cls(None, "the file is missing")
            if not state.fault:
                break
        return state

    @classmethod
    def judge(cls, data: bytes) -> WatermarkState:
        """Decode the content of the file."""
        slots = [Watermark.read(data[start : start + SLOT_BYTES]) for start in (0, SLOT_BYTES)]
        whole = [slot for slot in slots if slot is not None]
        newest = max(whole, key=lambda slot: slot.sequence, default=None)
        if len(data) != FILE_BYTES:
            return cls(
                newest,
                f"the file has {len(data)} bytes{'' if len(data) < FILE_BYTES else ' or more'}, not {FILE_BYTES}",
            )
        if len(whole) < 2:
            names = [str(index) for index, slot in enumerate(slots) if slot is None]
            return cls(newest, f"slot {' and '.join(names)} is not whole")
        return cls(newest, _disagreement(whole[0], whole[1]))


def _disagreement(a: Watermark, b: Watermark) -> str:
    old, new = sorted((a, b), key=lambda slot: slot.sequence)
    if (old.recording, old.manifest_crc) != (new.recording, new.manifest_crc):
        return "the slots are of different recordings"
    if new.sequence != old.sequence + 1 or new is not (a, b)[new.sequence % 2]:
        return "the slots do not follow each other"
    if new.closed and replace(old, sequence=new.sequence) != new:
        return "only one slot says that the recording is closed"
    return ""


class WatermarkFile:
    """Watermark file, open for writing and locked against other writers. Not thread-safe."""

    def __init__(self, directory: Path, fd: int, state: Watermark) -> None:
        self._fd = fd
        self.path = directory / NAME
        self.state = state

    @classmethod
    def create(cls, directory: Path, state: Watermark) -> WatermarkFile:
        """Create the file. Raises RecordingError when it exists."""
        path = directory / NAME
        with naming(path, "creating"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        return cls._locked(directory, fd, state, fresh=True)

    @classmethod
    def open(cls, directory: Path) -> WatermarkFile:
        """Open the file, created if missing. `state` is the newest valid slot, or an empty one.

        Raises:
            RecordingError: Another writer holds the lock, or the file cannot be opened.
        """
        path = directory / NAME
        with naming(path, "opening for writing"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        return cls._locked(directory, fd, Watermark(0, 0), fresh=False)

    @classmethod
    def _locked(cls, directory: Path, fd: int, state: Watermark, *, fresh: bool) -> WatermarkFile:
        try:
            lock(fd, directory)
            file = cls(directory, fd, WatermarkState.read(directory).newest or state)
            if fresh:
                file.settle(state)
            return file
        except BaseException:
            os.close(fd)
            raise

    def put(self, state: Watermark) -> None:
        """Write the next slot, which then survives kill -9. Raises the system's OSError."""
        state = replace(state, sequence=self.state.sequence + 1, boot=boot_id())
        write_all(self._fd, state.write(), state.sequence % 2 * SLOT_BYTES)
        self.state = state

    def sync(self) -> None:
        """Make the written slots survive power loss (fdatasync)."""
        os.fdatasync(self._fd)

    def settle(self, state: Watermark) -> None:
        """Write the state to both slots and make them durable."""
        with naming(self.path, "writing"):
            for _ in range(2):
                self.put(state)
                self.sync()
            os.ftruncate(self._fd, FILE_BYTES)
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file, which releases the lock. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def lock(fd: int, directory: Path) -> None:
    """Take the exclusive lock. Raises RecordingError, which names the current writer, if it is held."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        newest = WatermarkState.read(directory).newest
        who = f"process {newest.pid}" if newest and newest.pid else "another process"
        raise RecordingError(f"{directory}: {who} is writing this recording; close it there first") from error
    except OSError as error:
        raise RecordingError(f"{directory}: cannot be locked: {error.strerror or error}") from error
