"""Framing: encodes messages as records, places them in segments and fills the buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from actscope.store.format.checksum import Buffer as Bytes
from actscope.store.format.checksum import crc32c_of
from actscope.store.format.envelope import Prologue, epilogue
from actscope.store.format.layout import (
    ENTRY,
    ENTRY_ROW,
    MAX_MESSAGES,
    Head,
    padding_after,
    padding_record,
    record_bytes,
)
from actscope.store.format.manifest import Manifest
from actscope.store.format.watermark import LogPosition
from actscope.store.options import BLOCK
from actscope.store.writing.buffers import Buffer
from actscope.store.writing.pipeline_state import PipelineState


class SegmentFramer:
    """Encoder of messages into segments, cut into buffers. Use it under the append lock.

    A flush pads the current block with a padding record, so no byte is written twice. A failed or torn write therefore cannot
    damage acknowledged bytes.
    """

    def __init__(
        self, flow: PipelineState, manifest: Manifest, segment_bytes: int, direct: bool, last: int, segment: int
    ) -> None:
        self._state = flow
        self._manifest = manifest
        self._limit = segment_bytes
        self._block = BLOCK if direct else 1
        self._number = last
        self._segment = segment - 1
        self._prologue: Prologue | None = None
        self._entries = bytearray()
        self._frame = 0  # bytes of an epilogue without entries
        self._at = 0
        self._buffer: Buffer | None = None
        self._handed = 0

    def message(
        self, channel: int, key: bytes, parts: Sequence[memoryview], length: int, crc: int, time_ns: int
    ) -> int:
        """Append one message to the buffers and return its number. Blocks while the buffers are full (back pressure).

        Atomic: an interrupt leaves either no trace or a poisoned writer, never a partial message that others follow.

        Raises:
            RecordingPoisoned: Writing has failed.
        """
        self._make_place(length, time_ns)
        size = record_bytes(self._at, length)
        self._state.reserve(size, self._buffer)
        pad = bytes(padding_after(self._at + length))  # heads are a multiple of 8
        number, start = self._number + 1, self._at
        head = Head(channel + 1, key, number, self._state.durable.number, length, time_ns, crc32c_of((pad,), crc))
        self._all_or_nothing((head.write(self._manifest.recording, start), *parts, pad))
        self._entries += ENTRY_ROW.pack(number, self._segment, channel, start, length, time_ns, key)
        self._commit(number)
        return number

    def flush(self) -> bool:
        """Queue the current buffer for writing. Return whether there was one."""
        if self._buffer is None:
            return False
        if pad := padding_record(self._at, self._block):
            self._all_or_nothing((pad,))
            self._commit(self._number)
        self._hand_over()
        return True

    def finish(self) -> None:
        """Append the epilogue of the current segment, if there is one, and queue it for writing."""
        if self._prologue is not None:
            prologue = self._prologue
            self._or_poison(lambda: self._finish(prologue))

    def buffered(self) -> int:
        """Return the bytes in the current buffer, which is not queued yet."""
        buffer = self._buffer
        return buffer.used if buffer else 0

    def _finish(self, prologue: Prologue) -> None:
        entries = np.frombuffer(bytes(self._entries), ENTRY)
        self._put(epilogue(prologue, self._manifest.channels, entries, self._at))
        length = self._at
        self._put(bytes(padding_after(length, self._block)))
        assert self._buffer is not None
        self._buffer.finish = length
        self._hand_over()
        self._prologue = None

    def _make_place(self, length: int, time_ns: int) -> None:
        if self._prologue is not None and self._full(length):
            self._state.reserve(self._frame + len(self._entries), self._buffer)
            self.finish()
        if self._prologue is None:
            self._state.reserve(1)
            self._or_poison(lambda: self._begin(time_ns))

    def _full(self, length: int) -> bool:
        count = len(self._entries) // ENTRY.itemsize
        index = self._frame + len(self._entries) + ENTRY.itemsize
        return count > 0 and (self._at + record_bytes(self._at, length) + index > self._limit or count >= MAX_MESSAGES)

    def _begin(self, time_ns: int) -> None:
        self._segment += 1
        self._at = 0
        prologue = Prologue.make(self._manifest, self._segment, self._number + 1, time_ns)
        self._frame = len(epilogue(prologue, self._manifest.channels, np.zeros(0, ENTRY), 0))
        self._entries = bytearray()
        self._put(prologue.data)
        self._prologue = prologue
        self._commit(self._number)

    def _or_poison(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            self._state.fail(InterruptedError(f"the change of segments was cut off: {error!r}"))
            raise

    def _commit(self, number: int) -> None:
        assert self._buffer is not None
        self._number = number
        self._buffer.upto = LogPosition(number, self._segment, self._at)
        self._state.appended(number)

    def _all_or_nothing(self, parts: Sequence[Bytes]) -> None:
        handed, at, used = self._handed, self._at, self._buffer.used if self._buffer else 0
        try:
            for part in parts:
                self._put(part)
        except BaseException as error:
            if handed != self._handed:
                self._state.fail(InterruptedError(f"a message was cut off: {error!r}"))
            self._at = at
            if self._buffer is not None:
                self._buffer.used = used
            raise

    def _put(self, data: Bytes) -> None:
        view = memoryview(data)
        while view:
            if self._buffer is None:
                self._buffer = self._state.take()
                self._buffer.begin(self._segment, self._at)
            count = self._buffer.add(view)
            self._at += count
            view = view[count:]
            if view:
                self._hand_over()

    def _hand_over(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._handed += 1
            self._state.hand_over(buffer)
