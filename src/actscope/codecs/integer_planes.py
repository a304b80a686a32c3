"""A block of small signed integers `[n, d]` as planes: cut in two (see `bitfields`), the tops by channel where that helps.

    low bytes   k // 8 planes [n, d]
    low fields  when k % 8: the fields of each chunk of rows packed, one chunk after the other
    tops        int8 [n, d]; or [d, n], channels in a given order
    escapes     when there are any: places u32, values i32

A channel's tops have a spread of their own. Laid out channel by channel, channels of like spread side by side, each
128 KB of zstd have a Huffman table that fits them: 0.1 bits an integer on a real encoder's activations.
Integers beyond the range of the cut are escapes: zero in the planes, and listed with their place in the flat block.
"""

from __future__ import annotations

import numpy as np

from actscope.codecs import bitfields
from actscope.codecs.planes import PlaneReader, PlaneWriter
from actscope.codecs.scratch import borrowed
from actscope.errors import CodecError

#: An escape's place is a u32.
MOST_ELEMENTS = 1 << 32
#: Elements of a chunk, so that what is done to it stays in a core's cache. Part of the format.
_CHUNK = 128 << 10


def chunk_rows(d: int) -> int:
    """Rows of a chunk."""
    return max(1, _CHUNK // d)


class IntegerPlanes:
    """Filled chunk by chunk with `put` and written; or read, and looked at chunk by chunk with `get`."""

    def __init__(self, n: int, d: int, k: int, order: np.ndarray | None) -> None:
        """`order`: uint16 [d], in which order channels are laid out; None: tops stay rows."""
        self.n, self.d, self.k, self.order = n, d, k, order
        self.places = np.empty(0, np.uint32)
        self.values = np.empty(0, np.int32)
        self._escapes: list[tuple[np.ndarray, np.ndarray]] = []
        self._top_shape = (n, d) if order is None else (d, n)
        if order is not None:
            self._order, self._back = order.astype(np.intp), np.argsort(order)

    @property
    def escapes(self) -> int:
        return sum(len(places) for places, _ in self._escapes)

    def _field_size(self) -> int:
        whole, rest = divmod(self.n, chunk_rows(self.d))
        bits = self.k % 8
        return whole * self._packed(chunk_rows(self.d)) + self._packed(rest) if bits else 0

    def _packed(self, rows: int) -> int:
        return bitfields.packed_size(rows * self.d, self.k % 8)

    def _field(self, begin: int, rows: int) -> np.ndarray:
        """The packed fields of a chunk."""
        at = begin // chunk_rows(self.d) * self._packed(chunk_rows(self.d))
        return self._fields[at : at + self._packed(rows)]

    # -- writing --

    def prepare(self) -> IntegerPlanes:
        """Room for `put`, borrowed until the next block."""
        self._low = [borrowed(f"low {i}", (self.n, self.d), np.uint8) for i in range(self.k // 8)]
        self._fields = borrowed("fields", (self._field_size(),), np.uint8)
        self._top = borrowed("top", self._top_shape, np.int8)
        return self

    def put(self, begin: int, q: np.ndarray) -> None:
        """The chunk of rows that begins there: int16 or int32 [r, d], C-contiguous, unchanged on return."""
        escapes = self._escape(begin, q)
        end = begin + len(q)
        low = [plane[begin:end] for plane in self._low]
        if self.k % 8:
            low.append(borrowed("field", q.shape, np.uint8))
        top = self._top[begin:end] if self.order is None else borrowed("rows of tops", q.shape, np.int8)
        bitfields.cut(q, self.k, low, top)
        if self.k % 8:
            bitfields.pack(low[-1].reshape(-1), self.k % 8, self._field(begin, len(q)))
        if self.order is not None:
            turned = borrowed("columns of tops", (self.d, len(q)), np.int8)
            np.copyto(turned, top.T)
            ordered = borrowed("ordered tops", turned.shape, np.int8)
            self._top[:, begin:end] = np.take(turned, self._order, axis=0, out=ordered, mode="clip")
        if escapes is not None:
            q.reshape(-1)[escapes[0]] = escapes[1]

    def _escape(self, begin: int, q: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Note escapes and make them zero; their places in `q` and their values."""
        limit = bitfields.limit(self.k)
        if q.max() < limit and q.min() >= -limit:
            return None
        flat = q.reshape(-1)
        places = np.flatnonzero((flat >= limit) | (flat < -limit))
        values = flat[places]
        self._escapes.append(((places + begin * self.d).astype(np.uint32), values.astype(np.int32)))
        flat[places] = 0
        return places, values

    def write(self, writer: PlaneWriter) -> None:
        """All planes as sections."""
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
        """What `write` wrote; CodecError when it is malformed."""
        count = self.n * self.d
        if escapes > count:
            raise CodecError(f"a block of {count} integers: found {escapes} escapes")
        self._low = [reader.plane(count).reshape(self.n, self.d) for _ in range(self.k // 8)]
        if self.k % 8:
            self._fields = reader.plane(self._field_size())
        self._top = reader.plane(count).view(np.int8).reshape(self._top_shape)
        if escapes:
            self.places, self.values = reader.array(escapes, "<u4"), reader.array(escapes, "<i4")
            if not (self.places[1:] > self.places[:-1]).all() or self.places[-1] >= count:
                raise CodecError(f"escapes: expected ascending places below {count}")
        return self

    @property
    def integers(self) -> np.dtype:
        """The narrowest type that holds all of them."""
        wide = self.k > 8 or np.any((self.values > 32767) | (self.values < -32768))
        return np.dtype(np.int32 if wide else np.int16)

    def get(self, begin: int, out: np.ndarray) -> None:
        """The chunk of rows that begins there, into `out` of type `integers`."""
        end = begin + len(out)
        low = [plane[begin:end] for plane in self._low]
        if self.k % 8:
            packed = self._field(begin, len(out))
            field = borrowed("field", (packed.size * 8 // (self.k % 8),), np.uint8)
            bitfields.unpack(packed, self.k % 8, field)
            low.append(field[: out.size].reshape(out.shape))
        bitfields.joined(self._tops(begin, end), low, self.k, out)
        if len(self.places):
            first, last = np.searchsorted(self.places, (begin * self.d, end * self.d))
            out.reshape(-1)[self.places[first:last] - begin * self.d] = self.values[first:last]

    def _tops(self, begin: int, end: int) -> np.ndarray:
        if self.order is None:
            return self._top[begin:end]
        tops = borrowed("rows of tops", (end - begin, self.d), np.int8)
        np.copyto(tops, np.take(self._top[:, begin:end], self._back, axis=0, mode="clip").T)
        return tops
