"""Planes of a block of small signed integers `[n, d]`, split into low bits and tops (see `bitfields`).

    low bytes   k // 8 planes [n, d]
    low fields  if k % 8: the packed fields of each chunk of rows, chunk after chunk
    tops        int8 [n, d]
    escapes     if any: indices u32, values i32

Integers out of range are escapes: zero in the planes, and listed with their index in the flattened block.
"""

from __future__ import annotations

import numpy as np

from actscope.codecs.coding import bitfields
from actscope.codecs.coding.planes import PlaneReader, PlaneWriter
from actscope.codecs.coding.scratch import borrowed
from actscope.errors import CodecError

#: The index of an escape is a u32.
MOST_ELEMENTS = 1 << 32
#: Elements of a chunk, so that its processing stays in a core's cache. Part of the format.
_CHUNK = 512 << 10


def chunk_rows(d: int) -> int:
    """Return the number of rows in a chunk."""
    return max(1, _CHUNK // d)


class IntegerPlanes:
    """Integer planes of a block. Encoding: `prepare`, `put` each chunk, `write`. Decoding: `read`, `get` each chunk."""

    def __init__(self, n: int, d: int, k: int) -> None:
        self.n, self.d, self.k = n, d, k
        self._escapes: list[tuple[np.ndarray, np.ndarray]] = []
        self._places, self._values = np.empty(0, np.uint32), np.empty(0, np.int32)

    def _packed(self, rows: int) -> int:
        """Return the bytes of a chunk's packed fields."""
        return bitfields.packed_size(rows * self.d, self.k % 8)

    def _fields_size(self) -> int:
        whole, rest = divmod(self.n, chunk_rows(self.d))
        return whole * self._packed(chunk_rows(self.d)) + self._packed(rest)

    def _chunk_fields(self, begin: int, rows: int) -> np.ndarray:
        at = begin // chunk_rows(self.d) * self._packed(chunk_rows(self.d))
        return self._fields[at : at + self._packed(rows)]

    # -- writing --

    def prepare(self) -> IntegerPlanes:
        """Allocate the planes for `put`, borrowed until the next block."""
        self._low = [borrowed(f"low {i}", (self.n, self.d), np.uint8) for i in range(self.k // 8)]
        self._fields = borrowed("fields", (self._fields_size(),), np.uint8)
        self._top = borrowed("top", (self.n, self.d), np.int8)
        return self

    def put(self, begin: int, q: np.ndarray) -> None:
        """Store the chunk that starts at row `begin`: int16 or int32 [r, d], C-contiguous, unchanged on return."""
        rows, columns, values = self._escape(begin, q)
        end = begin + len(q)
        low = [plane[begin:end] for plane in self._low]
        if self.k % 8:
            low.append(borrowed("field", q.shape, np.uint8))
        bitfields.cut(q, self.k, low, self._top[begin:end])
        if self.k % 8:
            bitfields.pack(low[-1].reshape(-1), self.k % 8, self._chunk_fields(begin, len(q)))
        q[rows, columns] = values

    def _escape(self, begin: int, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Record escapes and set them to zero. Return their rows, columns and values. Escapes concentrate in few channels."""
        limit = bitfields.limit(self.k)
        wild = np.flatnonzero((q.max(axis=0) >= limit) | (q.min(axis=0) < -limit))
        some = q[:, wild]
        rows, which = np.nonzero((some >= limit) | (some < -limit))
        columns, values = wild[which], some[rows, which]
        if rows.size:
            places = ((rows + begin) * self.d + columns).astype(np.uint32)
            self._escapes.append((places, values.astype(np.int32)))
            q[rows, columns] = 0
        return rows, columns, values

    @property
    def escapes(self) -> int:
        """Number of escapes so far."""
        return sum(len(places) for places, _ in self._escapes)

    def write(self, writer: PlaneWriter) -> None:
        """Write all planes as sections."""
        for plane in self._low:
            writer.add(plane, raw=True)
        if self.k % 8:
            writer.add(self._fields, raw=True)
        writer.add(self._top)
        if self._escapes:
            for parts in zip(*self._escapes, strict=True):
                writer.add(np.concatenate(parts))

    # -- reading --

    def read(self, reader: PlaneReader, escapes: int) -> IntegerPlanes:
        """Read the sections that `write` wrote. Raises CodecError if they are malformed."""
        count = self.n * self.d
        if escapes > count:
            raise CodecError(f"a block of {count} integers: found {escapes} escapes")
        self._low = [reader.plane(count).reshape(self.n, self.d) for _ in range(self.k // 8)]
        if self.k % 8:
            self._fields = reader.plane(self._fields_size())
        self._top = reader.plane(count).view(np.int8).reshape(self.n, self.d)
        if escapes:
            self._places, self._values = reader.array(escapes, "<u4"), reader.array(escapes, "<i4")
            if not (self._places[1:] > self._places[:-1]).all() or self._places[-1] >= count:
                raise CodecError(f"escapes: expected ascending places below {count}")
        return self

    def get(self, begin: int, out: np.ndarray) -> None:
        """Write the chunk that starts at row `begin` to `out`, int16 or int32 [r, d]."""
        end = begin + len(out)
        low = [plane[begin:end] for plane in self._low]
        if self.k % 8:
            packed = self._chunk_fields(begin, len(out))
            field = borrowed("field", (packed.size * (8 // (self.k % 8)),), np.uint8)
            bitfields.unpack(packed, self.k % 8, field)
            low.append(field[: out.size].reshape(out.shape))
        bitfields.joined(self._top[begin:end], low, self.k, out)
        if len(self._places):
            first, last = np.searchsorted(self._places, (begin * self.d, end * self.d))
            out.reshape(-1)[self._places[first:last] - begin * self.d] = self._values[first:last]
