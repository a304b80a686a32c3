"""Codecs by name and by wire code: `encoder("zstd:3")`, `decode(code, payload, ...)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from actscope.codecs.contract import Encoder
from actscope.codecs.dtypes import carrier
from actscope.codecs.general import LZ4, NONE, SHUFFLE_LZ4, SHUFFLE_ZSTD, ZSTD, General, decode_general
from actscope.codecs.packing import Buffer
from actscope.errors import CodecError

#: Wire codes; stable, never reused.
CODECS: dict[str, int] = {
    "none": NONE,
    "lz4": LZ4,
    "zstd": ZSTD,
    "shuffle_lz4": SHUFFLE_LZ4,
    "shuffle_zstd": SHUFFLE_ZSTD,
}
_NAMES = {code: name for name, code in CODECS.items()}

_MOST_ELEMENTS = 1 << 40


def name_of(code: int) -> str:
    """The name behind a wire code; CodecError for one that is not known."""
    try:
        return _NAMES[code]
    except KeyError:
        raise CodecError(
            f"codec {code} is not known to this version, which has {CODECS}: use a newer actscope"
        ) from None


def _plain(code: int) -> Callable[[str], Encoder]:
    def make(argument: str) -> Encoder:
        if argument:
            raise CodecError(f"codec {name_of(code)!r} takes no argument, found {argument!r}")
        return General(code)

    return make


def _zstd(code: int) -> Callable[[str], Encoder]:
    def make(argument: str) -> Encoder:
        level = argument or "1"
        if not level.isdecimal() or not 1 <= int(level) <= 19:
            raise CodecError(f"codec {name_of(code)!r}: expected a level of 1 to 19, found {argument!r}")
        return General(code, int(level))

    return make


_MAKERS: dict[str, Callable[[str], Encoder]] = {
    "none": _plain(NONE),
    "lz4": _plain(LZ4),
    "zstd": _zstd(ZSTD),
    "shuffle_lz4": _plain(SHUFFLE_LZ4),
    "shuffle_zstd": _zstd(SHUFFLE_ZSTD),
}
_USAGE = ("none", "lz4", "zstd[:LEVEL]", "shuffle_lz4", "shuffle_zstd[:LEVEL]")


def encoder(spec: str) -> Encoder:
    """A new encoder for one site, such as `"none"` or `"zstd:3"`; CodecError names the known ones."""
    name, colon, argument = spec.partition(":")
    if name not in _MAKERS or (colon and not argument):
        raise CodecError(f"no codec {spec!r}: expected one of {', '.join(_USAGE)}")
    return _MAKERS[name](argument)


def decode(codec: int, payload: Buffer, n: int, d: int, dtype: str, state: bytes | None = None) -> np.ndarray:
    """Rows [n, d] in the carrier of `dtype`, read-only where they share the payload's memory.

    `state` is what `Encoded.new_state` was for the block's `state`. Raises CodecError on anything malformed, and
    allocates no more than a small multiple of the rows' own size, whatever the payload says.
    """
    name_of(codec)
    if n < 0 or d < 0 or n * d > _MOST_ELEMENTS:
        raise CodecError(f"a block of {n} x {d} elements: expected none negative, and at most {_MOST_ELEMENTS} in all")
    carrier(dtype)
    return decode_general(codec, payload, n, d, dtype)
