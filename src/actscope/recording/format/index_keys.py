"""Index keys: metadata of each message of a recording, readable without its body.

kind  codec  dtype  flags | n_rows | first_row | width | state | mean, worst error | raw_bytes | first_step |
 u8    u8     u8     u8     u32      u64         u32     u32     f32   f32           u64         u64
    written_ns | queued_kib | reserved
    u64          u32          4
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from actscope.codecs import DTYPES, itemsize

#: dtype names by their wire codes.
DTYPE_NAMES = {code: name for name, code in DTYPES.items()}

KEY = np.dtype(
    [
        ("kind", "u1"),
        ("codec", "u1"),
        ("dtype", "u1"),
        ("flags", "u1"),
        ("n_rows", "<u4"),
        ("first_row", "<u8"),
        ("width", "<u4"),
        ("state", "<u4"),
        ("error_mean", "<f4"),
        ("error_worst", "<f4"),
        ("raw_bytes", "<u8"),
        ("first_step", "<u8"),
        ("written_ns", "<u8"),
        ("queued_kib", "<u4"),
        ("reserved", "V4"),
    ]
)


class Kind(IntEnum):
    """Kind of a message. BLOCK and STATE use the channel of their site; each other kind has its own channel."""

    BLOCK = 1  # rows of one site
    STATE = 2  # codec state that later blocks of the site need for decoding
    LABELS = 3  # labels of rows
    TOKENS = 4  # token texts, and tokens recorded by hand
    MARK = 5  # a request that was selected to be kept
    DROPS = 6  # rows of a site that were dropped
    SESSION = 7  # start or end of a writer


class BlockFlag(IntFlag):
    """Flags of a block."""

    LOSSY = 1  # the payload is preceded by one byte for each row: its error, encoded by `error_codes`


#: Largest block, decoded: twice the largest `PipelineOptions.block_bytes`. A reader checks it before it allocates.
MAX_BLOCK_BYTES = 256 << 20
#: Largest number of a row, so that sums stay within 64 bits.
MAX_ROW = 1 << 62


def wrong_blocks(keys: np.ndarray) -> np.ndarray:
    """Return the indices of block keys, KEY [n], whose numbers no writer makes.

    Rows and width are at least 1, their bytes at most MAX_BLOCK_BYTES, the dtype is known, and row numbers are below MAX_ROW.
    """
    sizes = np.array([itemsize(DTYPE_NAMES[code]) if code in DTYPE_NAMES else 0 for code in range(256)], np.float64)
    n_bytes = keys["n_rows"].astype(np.float64) * keys["width"] * sizes[keys["dtype"]]  # float64: products stay finite
    fits = (n_bytes > 0) & (n_bytes <= MAX_BLOCK_BYTES) & (keys["first_row"] < MAX_ROW)
    return np.flatnonzero(~fits)


_CHANNEL_OF = {
    Kind.LABELS: "ledger",
    Kind.TOKENS: "tokens",
    Kind.MARK: "marks",
    Kind.DROPS: "drops",
    Kind.SESSION: "sessions",
}
#: Channels of every recording; those of its sites follow.
CHANNELS = tuple(_CHANNEL_OF.values())


def channel_of(kind: Kind) -> str:
    """Return the channel of a kind of message that belongs to no site."""
    return _CHANNEL_OF[kind]


def channel_of_site(site: str) -> str:
    """Return the channel of a site's blocks and codec states."""
    return f"rows/{site}"


def key(kind: Kind, **fields: float) -> bytes:
    """Return a key of 64 bytes. Omitted fields are 0."""
    record = np.zeros((), KEY)
    record["kind"] = kind
    for name, value in fields.items():
        record[name] = value
    return record.tobytes()


#: Error codes per factor of two: codes are 9 % apart, and errors are rounded up.
_PER_OCTAVE = 8


def error_codes(errors: np.ndarray) -> np.ndarray:
    """Encode relative errors float32 [n] as uint8 [n]: 0 means exactly 0, c means at most 2 ** ((c - 255) / 8)."""
    with np.errstate(divide="ignore"):
        codes = 255 + np.ceil(_PER_OCTAVE * np.log2(errors.astype(np.float64)) - 1e-9)
    return np.where(errors > 0, np.clip(codes, 1, 255), 0).astype(np.uint8)


def errors_of(codes: np.ndarray) -> np.ndarray:
    """Decode the codes of `error_codes` to their upper bounds, float32 [n]."""
    return np.where(codes > 0, np.exp2((codes.astype(np.float32) - 255) / _PER_OCTAVE), np.float32(0))
