"""What the index says of each message of a recording, without reading its body.

kind  codec  dtype  flags | n_rows | first_row | width | state | mean, worst error | raw_bytes | first_step | reserved
 u8    u8     u8     u8     u32      u64         u32     u32     f32   f32           u64         u64          16
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from actscope.codecs import DTYPES

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
        ("reserved", "V16"),
    ]
)


class Kind(IntEnum):
    """What a message is; each but BLOCK and STATE has the channel of its name."""

    BLOCK = 1  # rows of one site
    STATE = 2  # what a codec needs to decode later blocks of its site
    LEDGER = 3  # labels of rows
    TOKENS = 4  # token texts, and tokens recorded by hand
    MARK = 5  # a request that was chosen to be kept
    DROPS = 6  # rows that a site has lost to a full queue
    SESSION = 7  # a writer has begun, or ended


class BlockFlag(IntFlag):
    """What else a block says of itself."""

    LOSSY = 1  # one byte a row stands before the payload: its error, by `error_code`


_CHANNEL_OF = {
    Kind.LEDGER: "ledger",
    Kind.TOKENS: "tokens",
    Kind.MARK: "marks",
    Kind.DROPS: "drops",
    Kind.SESSION: "sessions",
}
#: Channels that every recording has, before those of its sites.
CHANNELS = tuple(_CHANNEL_OF.values())


def channel_of(kind: Kind) -> str:
    """The channel of messages that belong to no site."""
    return _CHANNEL_OF[kind]


def channel_of_site(site: str) -> str:
    """The channel of a site's blocks and codec states."""
    return f"rows/{site}"


def key(kind: Kind, **fields: float) -> bytes:
    """The 64 bytes of one key; fields that are not named are 0."""
    record = np.zeros((), KEY)
    record["kind"] = kind
    for name, value in fields.items():
        record[name] = value
    return record.tobytes()


#: Steps of the error code to the power of two: 9 % apart, always rounded up.
_PER_OCTAVE = 8


def error_codes(errors: np.ndarray) -> np.ndarray:
    """Relative errors float32 [n] as uint8: 0 is exactly 0, c stands for at most 2 ** ((c - 255) / 8)."""
    with np.errstate(divide="ignore"):
        codes = 255 + np.ceil(_PER_OCTAVE * np.log2(errors.astype(np.float64)) - 1e-9)
    return np.where(errors > 0, np.clip(codes, 1, 255), 0).astype(np.uint8)


def errors_of(codes: np.ndarray) -> np.ndarray:
    """The upper ends, float32 [n], of what `error_codes` wrote."""
    return np.where(codes > 0, np.exp2((codes.astype(np.float32) - 255) / _PER_OCTAVE), np.float32(0))
