"""Lazy rows of one site: only the blocks of the selected rows are read and decoded."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from actscope.codecs import decode, name_of, to_float32
from actscope.errors import RecordingDamaged, RecordingError
from actscope.near_miss import hinted_class
from actscope.recording.format.arrays import as_torch
from actscope.recording.format.index_keys import (
    DTYPE_NAMES,
    KEY,
    MAX_BLOCK_BYTES,
    BlockFlag,
    Kind,
    errors_of,
    wrong_blocks,
)
from actscope.runtime.memory import check_room
from actscope.store import StoreReader

if TYPE_CHECKING:
    from torch import Tensor

_CACHED_BYTES = 64 << 20
#: Selects rows, as for a numpy array: a number, a slice, an array of numbers or of bool.
RowIndex: TypeAlias = SupportsIndex | slice | np.ndarray | Sequence[int]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows and their labels.

    Attributes:
        values: [n, d], of the site's dtype; bfloat16 is converted to float32, exactly.
        labels: LABEL [n], one for each row.
    """

    values: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Relative L2 error ||x - x'|| / ||x|| of `rows` rows; 0 is lossless. `p999` is rounded up by at most 9 %."""

    mean: float
    p999: float
    worst: float
    rows: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in bytes: `stored` on disk with codec states, `fp32` as float32, `source` in the source dtype."""

    stored: int
    fp32: int
    source: int

    @property
    def ratio_fp32(self) -> float:
        """Return the compression ratio against float32; 0 if nothing is stored."""
        return self.fp32 / self.stored if self.stored else 0.0

    @property
    def ratio_source(self) -> float:
        """Return the compression ratio against the source dtype; 0 if nothing is stored."""
        return self.source / self.stored if self.stored else 0.0


class Blocks:
    """Blocks of one site in the order of their rows, decoded on demand, with an LRU cache of 64 MiB."""

    def __init__(self, store: StoreReader, entries: np.ndarray) -> None:
        keys = np.ascontiguousarray(entries["key"]).view(KEY).reshape(-1)
        is_block = keys["kind"] == Kind.BLOCK
        order = np.argsort(keys["first_row"][is_block], kind="stable")
        self.entries: np.ndarray = entries[is_block][order]
        self.keys: np.ndarray = keys[is_block][order]
        self._check()
        self._first: np.ndarray = self.keys["first_row"].astype(np.int64)
        self._after: np.ndarray = self._first + self.keys["n_rows"]
        self.all_bytes = int(entries["length"].sum())
        self._states = entries[keys["kind"] == Kind.STATE]
        self._state_ids = keys["state"][keys["kind"] == Kind.STATE]
        self._store = store
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.keys)

    def _check(self) -> None:
        """Raise RecordingDamaged for a block whose numbers no writer makes, or one that overlaps the next."""
        wrong = wrong_blocks(self.keys)
        if len(wrong):
            key = self.keys[wrong[0]]
            raise RecordingDamaged(
                f"message {self.entries['number'][wrong[0]]}: its key says {key['n_rows']} rows of width {key['width']}, dtype "
                f"{key['dtype']}, from row {key['first_row']}; a writer makes blocks of at most {MAX_BLOCK_BYTES} bytes"
            )
        overlaps = np.flatnonzero(np.diff(self.keys["first_row"].astype(np.int64)) < self.keys["n_rows"][:-1])
        if len(overlaps):
            one, other = self.entries["number"][overlaps[0]], self.entries["number"][overlaps[0] + 1]
            raise RecordingDamaged(f"messages {one} and {other} hold the same rows: run `actscope verify`")

    @property
    def ranges(self) -> np.ndarray:
        """Return first row and row after the last of each block: int64 [n, 2], ascending."""
        return np.stack([self._first, self._after], axis=1)

    def holds(self, row_ids: np.ndarray) -> np.ndarray:
        """Return which rows, by number (int64 [n]), are in these blocks: bool [n]. Allocates nothing for other rows."""
        if not len(self):
            return np.zeros(len(row_ids), bool)
        at = np.searchsorted(self._first, row_ids, side="right") - 1
        held: np.ndarray = (at >= 0) & (row_ids < self._after[np.maximum(at, 0)])
        return held

    def dtype_of(self, block: int) -> str:
        """Return the source dtype of a block."""
        return DTYPE_NAMES[int(self.keys["dtype"][block])]

    def decoded(self, block: int) -> np.ndarray:
        """Return the rows of one block, [n, d], bfloat16 as uint16. Raises RecordingDamaged or CodecError."""
        if block not in self._cache:
            self._remember(block, self._decode(block))
        self._cache.move_to_end(block)
        return self._cache[block]

    def _remember(self, block: int, rows: np.ndarray) -> None:
        self._cache[block] = rows
        self._cached_bytes += rows.nbytes
        while self._cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes

    def _decode(self, block: int) -> np.ndarray:
        found = self.keys[block]
        if (found["dtype"], found["width"]) != (self.keys["dtype"][0], self.keys["width"][0]):
            raise RecordingDamaged(
                f"block {block} has another dtype or width than the site's first: run `actscope verify`"
            )
        body = self._store.read(self.entries[block])
        payload = body[int(found["n_rows"]) :] if found["flags"] & BlockFlag.LOSSY else body
        shape = int(found["n_rows"]), int(found["width"])
        return decode(int(found["codec"]), payload, *shape, self.dtype_of(block), self._state_of(block))

    def _state_of(self, block: int) -> bytes | None:
        wanted = int(self.keys["state"][block])
        if not wanted:
            return None
        fits = (self._state_ids == wanted) & (self._states["number"] < self.entries["number"][block])
        if not fits.any():
            raise RecordingDamaged(f"block {block} needs codec state {wanted}, which is not in the recording")
        states = self._states[fits]
        return bytes(self._store.read(states[int(np.argmax(states["number"]))]))

    def row_errors(self, block: int) -> np.ndarray | None:
        """Return the relative error of each row, float32 [n], rounded up by at most 9 %; None for a lossless block."""
        if not self.keys["flags"][block] & BlockFlag.LOSSY:
            return None
        body, n_rows = self._store.read(self.entries[block]), int(self.keys["n_rows"][block])
        if len(body) < n_rows:
            raise RecordingDamaged(f"block {block} has {len(body)} bytes, fewer than its {n_rows} rows have errors")
        return errors_of(np.frombuffer(body[:n_rows], np.uint8))

    def codec_names(self) -> dict[str, int]:
        """Return the number of rows by codec name."""
        names = {name_of(int(code)) for code in np.unique(self.keys["codec"])}
        rows = self.keys["n_rows"].astype(np.int64)
        codecs = np.array([name_of(int(code)) for code in self.keys["codec"]])
        return {name: int(rows[codecs == name].sum()) for name in sorted(names)}


@hinted_class
class SiteRows:
    """Labelled rows of one site as a lazy array [n, d], in the order of computation.

    Index with an int (gives [d]), a slice, an index array or a bool array (give [n, d]). Values have the source dtype, except
    that bfloat16 is converted to float32, exactly; `torch` and `native` keep the source dtype. Reading raises RecordingDamaged or
    CodecError for a block that cannot be read or decoded.

    Attributes:
        name: Name of the site.
        blocks: The site's blocks.
        labels: LABEL [n], one for each row.
    """

    def __init__(self, name: str, blocks: Blocks, row_ids: np.ndarray, labels: np.ndarray) -> None:
        self.name = name
        self.blocks = blocks
        here = blocks.holds(row_ids)
        self._ids: np.ndarray = row_ids[here]
        self.labels: np.ndarray = labels[here]

    def __repr__(self) -> str:
        return f"<SiteRows {self.name!r}: {len(self)} x {self.width} {self.source_dtype}>"

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def width(self) -> int:
        """Return d, the number of values in a row; 0 without blocks."""
        return int(self.blocks.keys["width"][0]) if len(self.blocks) else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, d)."""
        return len(self), self.width

    @property
    def source_dtype(self) -> str:
        """Return the dtype in which the rows were recorded; "float32" without blocks."""
        return self.blocks.dtype_of(0) if len(self.blocks) else "float32"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Return the numpy dtype of the arrays that indexing returns."""
        return np.dtype("float32" if self.source_dtype == "bfloat16" else self.source_dtype)

    @property
    def row_ids(self) -> np.ndarray:
        """Return the rows' numbers in the recording, int64 [n]. Equal numbers mean the same token at every site."""
        return self._ids

    def __getitem__(self, index: RowIndex) -> np.ndarray:
        ids = self._ids[index]
        rows = self._gather(np.atleast_1d(ids))
        values = to_float32(rows, "bfloat16") if self._is_bf16 else rows
        found: np.ndarray = values[0] if np.ndim(ids) == 0 else values
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def torch(self, index: RowIndex = slice(None)) -> Tensor:
        """Return rows as a torch tensor of the source dtype.

        Args:
            index: An int, a slice, an index array or a bool array.

        Returns:
            Tensor [n, d], or [d] for an int.
        """
        ids = self._ids[index]
        rows = as_torch(self._gather(np.atleast_1d(ids)), self.source_dtype)
        return rows[0] if np.ndim(ids) == 0 else rows

    def native(self, index: RowIndex = slice(None)) -> np.ndarray:
        """Return rows without conversion.

        Args:
            index: An int, a slice, an index array or a bool array.

        Returns:
            Array [n, d], or [d] for an int, of the source dtype; bfloat16 as the uint16 of its bits.
        """
        ids = self._ids[index]
        rows = self._gather(np.atleast_1d(ids))
        found: np.ndarray = rows[0] if np.ndim(ids) == 0 else rows
        return found

    def batches(self, batch_rows: int) -> Iterator[Rows]:
        """Iterate over all rows in order.

        Args:
            batch_rows: Maximum rows of a batch.

        Returns:
            An iterator of batches: values [n, d] and labels LABEL [n], n <= `batch_rows`.
        """
        for start in range(0, len(self), batch_rows):
            part = slice(start, start + batch_rows)
            yield Rows(self[part], self.labels[part])

    @property
    def _is_bf16(self) -> bool:
        return self.source_dtype == "bfloat16"

    def _gather(self, ids: np.ndarray) -> np.ndarray:
        carrier = np.dtype(np.uint16) if self._is_bf16 else self.dtype
        n_bytes = len(ids) * self.width * carrier.itemsize
        if n_bytes > _CACHED_BYTES:  # smaller ones are not worth a look at the machine
            check_room(n_bytes, RecordingError, f"{self.name}: {len(ids)} rows of width {self.width}, read at once,")
        out = np.empty((len(ids), self.width), carrier)
        of_block = np.searchsorted(self.blocks.keys["first_row"].astype(np.int64), ids, side="right") - 1
        for block in np.unique(of_block).tolist():
            mine = np.flatnonzero(of_block == block)
            out[mine] = self.blocks.decoded(block)[ids[mine] - int(self.blocks.keys["first_row"][block])]
        return out

    def errors(self) -> ErrorStats:
        """Return the measured errors of all rows, lossless ones included."""
        keys = self.blocks.keys
        rows = keys["n_rows"].astype(np.int64)
        found = [self.blocks.row_errors(block) for block in np.flatnonzero(keys["flags"] & BlockFlag.LOSSY).tolist()]
        lossy = np.concatenate([errors for errors in found if errors is not None]) if found else np.empty(0, np.float32)
        total = int(rows.sum())
        if not total:
            return ErrorStats(0.0, 0.0, 0.0, 0)
        mean = float((keys["error_mean"].astype(np.float64) * rows).sum() / rows.sum())
        worst = float(keys["error_worst"].max())
        at = math.ceil(0.999 * (total - 1)) - (
            total - len(lossy)
        )  # the 0.999 quantile, behind the zeros of lossless rows
        p999 = min(worst, float(np.partition(lossy, at)[at])) if at >= 0 else 0.0
        return ErrorStats(mean, p999, worst, total)

    def sizes(self) -> Sizes:
        """Return the sizes of the site's rows, in bytes."""
        keys = self.blocks.keys
        fp32 = int((keys["n_rows"].astype(np.int64) * keys["width"]).sum()) * 4
        return Sizes(self.blocks.all_bytes, fp32, int(keys["raw_bytes"].sum()))
