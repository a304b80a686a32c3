"""Store reader: messages of a recording that is being written, crashed, or is complete."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store.format.checksum import crc32c_of
from actscope.store.format.layout import ENTRY, HEAD_BYTES, Head, record_bytes, segment_name
from actscope.store.format.watermark import Watermark
from actscope.store.reading.damage import Damage
from actscope.store.reading.index import Progress, SegmentIndex


class StoreReader:
    """Reader of a recording's messages. Never writes. `read` is thread-safe; `refresh` is for one thread.

    Any file content raises only RecordingError or RecordingDamaged. The CRC32C of every returned body is verified.
    """

    def __init__(self, index: SegmentIndex) -> None:
        """Initialize from a segment index. Use `open`."""
        self._index = index
        self._entries = np.zeros(0, ENTRY)
        self._gather()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoreReader:
        """Open a recording. Reads the index of closed segments and the heads of others. Other damage is listed in `damage`.

        Args:
            path: Directory of the recording.

        Returns:
            A reader of the messages written so far.

        Raises:
            RecordingError: There is no recording.
            RecordingDamaged: No copy of its manifest can be read.
        """
        index = SegmentIndex(Path(path))
        index.look()
        return cls(index)

    @property
    def path(self) -> Path:
        """Return the directory of the recording."""
        return self._index.path

    @property
    def manifest(self) -> dict[str, object]:
        """Return the `manifest` that was passed to `Store.create`."""
        return self._index.manifest.facts

    @property
    def channels(self) -> list[str]:
        """Return the channel names. `entry["channel"]` is an index into them."""
        return list(self._index.manifest.channels)

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """Return the messages' entries, ENTRY [n], by number. Includes whole messages beyond the watermark."""
        return self._entries

    @property
    def damage(self) -> list[Damage]:
        """Return the damage found by `open` or the last `refresh`. Only `read` and `verify` check acknowledged bodies."""
        return list(self._index.damage)

    @property
    def watermark(self) -> Watermark | None:
        """Return the writer's watermark, or None when its file cannot be read."""
        return self._index.watermark

    def read(self, entry: np.void) -> memoryview:
        """Return the body of one message.

        Args:
            entry: An element of `entries`.

        Returns:
            The body, read-only bytes.

        Raises:
            RecordingDamaged: The file or message is missing, or the body fails its CRC32C.
            RecordingError: The file cannot be read.
        """
        name, offset, length = segment_name(int(entry["segment"])), int(entry["offset"]), int(entry["length"])
        path = self._index.path / name
        data = _read(path, offset, length)
        head = Head.read(data, self._index.manifest.recording, offset)
        number = int(entry["number"])
        if head is None or not _same(head, entry):
            raise RecordingDamaged(
                f"{path}: at {offset} should be the head of message {number}, and is not; run `verify`"
            )
        if crc32c_of((data[HEAD_BYTES:],)) != head.body_crc:
            raise RecordingDamaged(
                f"{path}: at {offset} the body of message {number} does not fit its CRC32C; run `verify`"
            )
        return data[HEAD_BYTES : HEAD_BYTES + length].toreadonly()

    def refresh(self) -> int:
        """Update from the files. Use it to follow a store that is being written.

        Returns:
            The number of new entries.

        Raises:
            RecordingError: The recording was removed, or a file cannot be read.
        """
        before = len(self._entries)
        self._index.look()
        self._gather()
        return len(self._entries) - before

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Read every byte and return the damage.

        Args:
            progress: Called with bytes done and total bytes.

        Returns:
            All damage; empty if the recording is intact.

        Raises:
            RecordingError: There is no recording, or a file cannot be read.
            RecordingDamaged: No copy of its manifest can be read.
        """
        index = SegmentIndex(self._index.path, thorough=True)
        index.look(progress)
        return index.damage

    def _gather(self) -> None:
        parts = [state.entries for _, state in sorted(self._index.segments.items())]
        if sum(map(len, parts)) == len(self._entries):
            return
        self._entries = np.concatenate([np.zeros(0, ENTRY), *parts])
        self._entries.flags.writeable = False


def _same(head: Head, entry: np.void) -> bool:
    mine = (head.number, head.channel - 1, head.length, head.time_ns)
    theirs = tuple(int(entry[name]) for name in ("number", "channel", "length", "time_ns"))
    return mine == theirs and head.key == bytes(entry["key"])


def _read(path: Path, offset: int, length: int) -> memoryview:
    """Return a whole record. Raises RecordingDamaged, before allocating, when the file is too short."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            size = record_bytes(offset, length)
            there = os.fstat(fd).st_size
            if offset + size > there:
                raise RecordingDamaged(
                    f"{path}: has {there} bytes, and a message reaches to {offset + size}; run `verify`"
                )
            data = np.empty(size, np.uint8).data
            done = 0
            while done < size and (count := os.preadv(fd, [data[done:]], offset + done)):
                done += count
            return data[:done]
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise RecordingDamaged(f"{path}: the file is missing") from error
    except OSError as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{path}: reading {length} bytes at {offset} failed: {error.strerror or error}") from error
