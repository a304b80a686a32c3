"""Element types of rows: wire codes, numpy carriers, and conversion to and from float32.

numpy has no bfloat16, so its carrier is uint16 with the same bits. All types are little-endian on the wire.
"""

from __future__ import annotations

import numpy as np

from actscope.errors import CodecError

#: Wire codes; stable, never reused.
DTYPES: dict[str, int] = {
    "float32": 1,
    "float16": 2,
    "bfloat16": 3,
    "float64": 4,
    "int8": 5,
    "uint8": 6,
    "int16": 7,
    "uint16": 8,
    "int32": 9,
    "uint32": 10,
    "int64": 11,
    "uint64": 12,
}

#: Element types that lossy codecs accept.
FLOATS = ("float32", "float16", "bfloat16")

_CARRIERS = {name: np.dtype("<u2" if name == "bfloat16" else name).newbyteorder("<") for name in DTYPES}


def carrier(dtype: str) -> np.dtype:
    """Return the numpy dtype that holds rows of `dtype`. Raises CodecError for an unknown dtype."""
    try:
        return _CARRIERS[dtype]
    except KeyError:
        raise CodecError(f"rows of dtype {dtype!r}: expected one of {', '.join(DTYPES)}") from None


def itemsize(dtype: str) -> int:
    """Return the size of one element in bytes. Raises CodecError for an unknown dtype."""
    return carrier(dtype).itemsize


def to_float32(rows: np.ndarray, dtype: str, out: np.ndarray | None = None) -> np.ndarray:
    """Return rows as float32 of the same shape: exact for bfloat16 and float16, rounded for float64 and wide integers.

    float32 rows are returned without a copy. Others are written to `out` (float32, same shape) if it is given.
    """
    if rows.dtype == np.float32:
        return rows
    wide = np.empty(rows.shape, np.float32) if out is None else out
    if dtype == "bfloat16":
        np.left_shift(rows, 16, out=wide.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore"):
            np.copyto(wide, rows, casting="same_kind" if rows.dtype.kind == "f" else "unsafe")
    return wide


def from_float32(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 rows in the carrier of a dtype of FLOATS, of the same shape.

    Values are rounded to nearest even. Overflow becomes infinity, and NaN stays NaN. With dtype float32 nothing is copied.

    Raises:
        CodecError: The dtype is unknown.
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return rows.astype(carrier(dtype), copy=False)
    bits = rows.view(np.uint32)
    moved = (bits >> 16) & 1
    moved += 0x7FFF
    moved += bits
    narrow = (moved >> 16).astype(np.uint16)
    if rows.size and np.isnan(rows.max()):  # rounding could turn a NaN into infinity or zero
        odd = np.isnan(rows)
        narrow[odd] = (bits[odd] >> 16).astype(np.uint16) | 0x40
    return narrow


def checked_rows(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return the rows [n, d] as C-contiguous. Raises CodecError if their shape or numpy dtype does not match `dtype`."""
    expected = carrier(dtype)
    if rows.ndim != 2 or rows.dtype != expected:
        raise CodecError(
            f"rows of dtype {dtype!r}: expected an array [n, d] of {expected}, found {list(rows.shape)} of {rows.dtype}"
        )
    return np.ascontiguousarray(rows)


def as_bytes(rows: np.ndarray) -> np.ndarray:
    """Return the bytes of a C-contiguous array as a view uint8 [nbytes]."""
    return rows.reshape(-1).view(np.uint8)


def as_rows(flat: np.ndarray, n: int, d: int, dtype: str) -> np.ndarray:
    """Return bytes, uint8 [n * d * itemsize], as a view of rows [n, d] in the carrier of `dtype`."""
    return flat.view(carrier(dtype)).reshape(n, d)
