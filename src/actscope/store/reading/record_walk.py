"""Record walk: reads the records of one segment, intact or damaged, from head to head."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from actscope.store.format.envelope import Ranges
from actscope.store.format.layout import (
    ALIGN,
    ATTACHMENT,
    ENTRY,
    ENTRY_ROW,
    HEAD_BYTES,
    HEAD_MAGIC,
    MESSAGE,
    PADDING,
    Head,
    padding_record,
    record_bytes,
)
from actscope.store.format.source import Source
from actscope.store.options import BLOCK
from actscope.store.reading.damage import Damage

MAGIC_AT = 31  # offset of the magic in a head


@dataclass(slots=True)
class RecordWalk:
    """Cursor of a walk over a segment. `advance` continues from it, so a growing file is read once.

    at        offset after the last whole record
    number    next expected message number
    damage    permanent damage: bad bytes with acknowledged messages in or after them
    tail      why the walk stopped before the end of the file (a write in progress or a torn one); "" at the end
    epilogue  whether the walk stopped at an apparent epilogue
    end       offset of the epilogue, if its index is readable
    """

    segment: int
    recording: int
    channels: int
    at: int
    number: int
    lost: Ranges = ()
    rows: bytearray = field(default_factory=bytearray)
    damage: list[Damage] = field(default_factory=list)
    tail: str = ""
    epilogue: bool = False
    end: int | None = None

    def __post_init__(self) -> None:
        self.skip_lost()

    def skip_lost(self) -> None:
        """Advance `number` past the messages that an earlier salvage lost."""
        self.number = self._after_lost(self.number)

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """Return the messages walked so far, ENTRY [n]."""
        return np.frombuffer(bytes(self.rows), ENTRY)

    def advance(self, source: Source, acknowledged: int, *, bodies: bool) -> None:
        """Walk to the end of the file or to the first bytes that are not a record.

        Bad bytes up to message `acknowledged` are damage, and the walk continues after them. Bad bytes beyond it end the walk.
        Checks the CRC32C of bodies that are not acknowledged, or of all bodies with `bodies`.
        """
        size, self.tail, self.epilogue = source.size(), "", False
        while self.at < size and not self.tail and not self.epilogue:
            wrong = self._step(source, size, acknowledged, bodies)
            if wrong and self.number <= acknowledged:
                self._skip(source, size if self.end is None else self.end, acknowledged, wrong)
            else:
                self.tail = wrong

    def _step(self, source: Source, size: int, acknowledged: int, bodies: bool) -> str:
        start = source.take(self.at, HEAD_BYTES)
        opcode = start[0]
        if opcode == MESSAGE:
            return self._message(source, start, size, acknowledged, bodies)
        if opcode == PADDING:
            return self._padding(source)
        self.epilogue = opcode == ATTACHMENT and (self.number > acknowledged or self.at == self.end)
        return "" if self.epilogue else f"no record begins with {opcode:#04x}"

    def _message(self, source: Source, start: memoryview, size: int, acknowledged: int, bodies: bool) -> str:
        head = Head.read(start, self.recording, self.at)
        if head is None:
            return "the head of a message is not whole"
        if not 0 < head.channel <= self.channels or head.number < self.number:
            return f"message {head.number} of channel {head.channel} cannot be here"
        length = record_bytes(self.at, head.length)
        if self.at + length > size:
            return f"message {head.number} is cut off after {size - self.at} of {length} bytes"
        if head.number > self.number:
            if self.number > acknowledged:
                return f"message {head.number} stands where {self.number} should"
            self._miss(0, f"messages {self.number}..{head.number - 1} are missing")
        self.number = head.number
        if bodies or head.number > acknowledged:
            crc = source.crc32c(self.at + HEAD_BYTES, length - HEAD_BYTES)
            if crc != head.body_crc:
                return self._bad_body(head, length, acknowledged)
        self._take(head, length)
        return ""

    def _bad_body(self, head: Head, length: int, acknowledged: int) -> str:
        wrong = f"the CRC32C of message {head.number} does not fit its body"
        if head.number > acknowledged:
            return wrong
        self.damage.append(Damage(self.segment, self.at, length, "corrupt", True, wrong))
        self.at += length
        self.number = self._after_lost(head.number + 1)
        return ""

    def _take(self, head: Head, length: int) -> None:
        self.rows += ENTRY_ROW.pack(
            head.number, self.segment, head.channel - 1, self.at, head.length, head.time_ns, head.key
        )
        self.at += length
        self.number = self._after_lost(head.number + 1)

    def _padding(self, source: Source) -> str:
        wanted = padding_record(self.at, BLOCK)
        if not wanted or bytes(source.take(self.at, len(wanted))) != wanted:
            return "padding is not what a writer leaves"
        self.at += len(wanted)
        return ""

    def _skip(self, source: Source, end: int, acknowledged: int, wrong: str) -> None:
        """Skip bad bytes to the next head found, or to `end`."""
        at, number = find_head(source, self.at + ALIGN, end, self.recording, self.number) or (end, acknowledged + 1)
        which = f"; messages {self.number}..{number - 1}" if number > self.number else ""
        self._miss(at - self.at, wrong + which)
        self.at, self.number = at, self._after_lost(number)

    def _miss(self, length: int, detail: str) -> None:
        kind = "corrupt" if length else "missing"
        self.damage.append(Damage(self.segment, self.at, length, kind, True, detail))

    def _after_lost(self, number: int) -> int:
        for first, last in self.lost:
            if first <= number <= last:
                number = last + 1
        return number


def find_head(source: Source, start: int, end: int, recording: int, least: int) -> tuple[int, int] | None:
    """Return offset and number of the next message of this recording in `start..end` with a number >= `least`, or None."""
    at = start
    while at + HEAD_BYTES <= end:
        window = bytes(source.take(at, min(BLOCK * 16, end - at)))
        place = window.find(HEAD_MAGIC, MAGIC_AT)
        while place >= 0:
            offset = at + place - MAGIC_AT
            head = Head.read(source.take(offset, HEAD_BYTES), recording, offset)
            if head is not None and head.channel and head.number >= least:
                return offset, head.number
            place = window.find(HEAD_MAGIC, place + 1)
        at += max(len(window) - MAGIC_AT - len(HEAD_MAGIC) + 1, 1)
    return None
