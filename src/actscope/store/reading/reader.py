"""Reading a recording: one that is being written, that crashed, or that is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store.format.checksum import crc32c_of
from actscope.store.format.layout import ENTRY, HEAD_BYTES, Head, record_bytes, segment_name
from actscope.store.format.watermark import Watermark
from actscope.store.reading.damage import Damage
from actscope.store.reading.index import Progress, SegmentIndex


class StoreReader:
    """Messages of a recording by their entries. Never writes; `read` may be called by many threads, `refresh` by one.

    Nothing here raises for what is in the files but RecordingError and RecordingDamaged, and every body handed out
    has its CRC32C checked.
    """

    def __init__(self, survey: SegmentIndex) -> None:
        """Use `open`."""
        self._survey = survey
        self._entries = np.zeros(0, ENTRY)
        self._gather()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoreReader:
        """RecordingError when this is no recording; RecordingDamaged when no copy of its manifest can be read.

        Other damage is listed in `damage`. Reads the index of closed segments and the heads of others.
        """
        survey = SegmentIndex(Path(path))
        survey.look()
        return cls(survey)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._survey.path

    @property
    def manifest(self) -> dict[str, Any]:
        """What the writer was given."""
        return self._survey.manifest.facts

    @property
    def channels(self) -> list[str]:
        """Names; `entry["channel"]` is an index into them."""
        return list(self._survey.manifest.channels)

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """ENTRY [messages], by number. Messages that are whole and above the watermark are in it."""
        return self._entries

    @property
    def damage(self) -> list[Damage]:
        """What the last look saw; bodies of acknowledged messages are only checked by `read` and `verify`."""
        return list(self._survey.damage)

    @property
    def watermark(self) -> Watermark | None:
        """What the writer has acknowledged; None when the file cannot be read."""
        return self._survey.watermark

    def read(self, entry: np.void) -> memoryview:
        """The body of one message, read-only; RecordingDamaged when a byte of it is not as it was written."""
        name, offset, length = segment_name(int(entry["segment"])), int(entry["offset"]), int(entry["length"])
        path = self._survey.path / name
        data = _read(path, offset, length)
        head = Head.read(data, self._survey.manifest.recording, offset)
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
        """Look again; returns how many entries are new. For following a store that is being written."""
        before = len(self._entries)
        self._survey.look()
        self._gather()
        return len(self._entries) - before

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Read every byte and say what is wrong; `progress` gets bytes done and bytes in all."""
        survey = SegmentIndex(self._survey.path, thorough=True)
        survey.look(progress)
        return survey.damage

    def _gather(self) -> None:
        parts = [state.entries for _, state in sorted(self._survey.segments.items())]
        if sum(map(len, parts)) == len(self._entries):
            return
        self._entries = np.concatenate([np.zeros(0, ENTRY), *parts])
        self._entries.flags.writeable = False


def _same(head: Head, entry: np.void) -> bool:
    mine = (head.number, head.channel - 1, head.length, head.time_ns)
    theirs = tuple(int(entry[name]) for name in ("number", "channel", "length", "time_ns"))
    return mine == theirs and head.key == bytes(entry["key"])


def _read(path: Path, offset: int, length: int) -> memoryview:
    """A whole record; RecordingDamaged when the file is shorter, before anything is allocated."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
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
