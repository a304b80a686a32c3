"""Lookup of codecs by name and by wire code: `encoder("zstd:3")`, `decode(code, payload, ...)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from actscope.codecs.auto import Auto
from actscope.codecs.coding.compressors import Buffer
from actscope.codecs.contract import Encoder
from actscope.codecs.dtypes import FLOATS, carrier
from actscope.codecs.error_bounded import ERROR_BOUNDED, ErrorBounded, decode_error_bounded
from actscope.codecs.general import LZ4, NONE, SHUFFLE_LZ4, SHUFFLE_ZSTD, ZSTD, General, decode_general
from actscope.codecs.lossless import LOSSLESS, Lossless, decode_lossless
from actscope.codecs.svd import SVD, Svd, check_svd_width, decode_svd, rows_to_fit
from actscope.errors import CodecError
from actscope.near_miss import hint

#: Wire codes; stable, never reused.
CODECS: dict[str, int] = {
    "none": NONE,
    "lz4": LZ4,
    "zstd": ZSTD,
    "shuffle_lz4": SHUFFLE_LZ4,
    "shuffle_zstd": SHUFFLE_ZSTD,
    "lossless": LOSSLESS,
    "error_bounded": ERROR_BOUNDED,
    "svd": SVD,
}
_NAMES = {code: name for name, code in CODECS.items()}

_MOST_ELEMENTS = 1 << 40


def name_of(code: int) -> str:
    """Return the codec name for a wire code. Raises CodecError for an unknown code."""
    try:
        return _NAMES[code]
    except KeyError:
        raise CodecError(
            f"codec {code} is not known to this version, which has {CODECS}: use a newer actscope"
        ) from None


def _plain(name: str, make: Callable[[], Encoder]) -> Callable[[str], Encoder]:
    def made(argument: str) -> Encoder:
        if argument:
            raise CodecError(f"codec {name!r} takes no argument, found {argument!r}")
        return make()

    return made


def _zstd(code: int) -> Callable[[str], Encoder]:
    def made(argument: str) -> Encoder:
        level = argument or "1"
        if not level.isdecimal() or not 1 <= int(level) <= 19:
            raise CodecError(f"codec {name_of(code)!r}: expected a level of 1 to 19, found {argument!r}")
        return General(code, int(level))

    return made


def _bound(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise CodecError(f"codec: expected a bound on the relative error, such as 1e-3, found {argument!r}") from None


def _svd(argument: str) -> Encoder:
    if not argument.isdecimal():
        raise CodecError(f"codec 'svd': expected a number of components, such as svd:256, found {argument!r}")
    return Svd(int(argument))


_MAKERS: dict[str, Callable[[str], Encoder]] = {
    "none": _plain("none", lambda: General(NONE)),
    "lz4": _plain("lz4", lambda: General(LZ4)),
    "zstd": _zstd(ZSTD),
    "shuffle_lz4": _plain("shuffle_lz4", lambda: General(SHUFFLE_LZ4)),
    "shuffle_zstd": _zstd(SHUFFLE_ZSTD),
    "lossless": _plain("lossless", Lossless),
    "error_bounded": lambda argument: ErrorBounded(_bound(argument)),
    "svd": _svd,
    "auto": lambda argument: Auto(_bound(argument) if argument else None),
}
_USAGE = (
    "none",
    "lz4",
    "zstd[:LEVEL]",
    "shuffle_lz4",
    "shuffle_zstd[:LEVEL]",
    "lossless",
    "error_bounded:BOUND",
    "svd:COMPONENTS",
    "auto[:BOUND]",
)


def encoder(spec: str) -> Encoder:
    """Return a new encoder for one site.

    Args:
        spec: Codec name with an optional argument: `"none"`, `"zstd:3"`, `"error_bounded:1e-3"`, `"svd:256"`, `"auto"` ...

    Returns:
        An encoder. It keeps the state of its site and is used by one thread at a time.

    Raises:
        CodecError: The codec is unknown or its argument is invalid; the message lists the codecs.
        MissingExtra: The codec's compression library is not installed.
    """
    name, colon, argument = spec.partition(":")
    if name not in _MAKERS or (colon and not argument):
        raise CodecError(f"no codec {spec!r}: expected one of {', '.join(_USAGE)}{hint(name, _MAKERS)}")
    return _MAKERS[name](argument)


def check_rows(spec: str, width: int, dtype: str, site: str) -> None:
    """Check, before a model runs, that a codec can encode the rows of a site.

    Args:
        spec: Codec as `encoder` takes it.
        width: Elements of a row; 0 if unknown.
        dtype: Element type of the rows; "" if unknown.
        site: Name of the site, for the message.

    Raises:
        CodecError: The codec is unknown, takes narrower rows or other dtypes. `auto` takes all.
    """
    one = encoder(spec)
    if isinstance(one, Svd | ErrorBounded) and dtype and dtype not in FLOATS:
        raise CodecError(
            f"codec {spec!r} takes rows of {', '.join(FLOATS)}, and those of {site} are {dtype}: use lossless"
        )
    if isinstance(one, Svd) and width:
        try:
            check_svd_width(one.k, width)
        except CodecError as error:
            raise CodecError(f"{site}: {error}") from error


def rows_before_encoding(spec: str) -> int:
    """Return the number of rows that a codec stores losslessly at each site before it encodes any; 0 for most codecs."""
    one = encoder(spec)
    return rows_to_fit(one.k) if isinstance(one, Svd) else 0


def decode(codec: int, payload: Buffer, n: int, d: int, dtype: str, state: bytes | None = None) -> np.ndarray:
    """Decode one block of rows.

    Allocates at most a small multiple of the rows' size, even for a hostile payload.

    Args:
        codec: Wire code of the codec (`Encoded.codec`).
        payload: The encoded bytes (`Encoded.payload`).
        n: Number of rows.
        d: Row width in elements.
        dtype: Element type, a key of DTYPES.
        state: Bytes of the codec state that the block needs (`Encoded.new_state`), or None.

    Returns:
        Rows [n, d] in the carrier of `dtype`; read-only if they share memory with the payload.

    Raises:
        CodecError: The payload or the state is malformed, an argument is invalid, or the rows do not fit in memory.
        MissingExtra: The codec's compression library is not installed.
    """
    name_of(codec)
    if n < 0 or d < 0 or n * d > _MOST_ELEMENTS:
        raise CodecError(f"a block of {n} x {d} elements: expected none negative, and at most {_MOST_ELEMENTS} in all")
    carrier(dtype)
    try:
        return _decode(codec, payload, n, d, dtype, state)
    except MemoryError as error:
        raise CodecError(f"a block of {n} x {d} elements of {dtype} does not fit in memory") from error


def _decode(codec: int, payload: Buffer, n: int, d: int, dtype: str, state: bytes | None) -> np.ndarray:
    if codec == LOSSLESS:
        return decode_lossless(payload, n, d, dtype)
    if codec == ERROR_BOUNDED:
        return decode_error_bounded(payload, n, d, dtype)
    if codec == SVD:
        return decode_svd(payload, n, d, dtype, state)
    return decode_general(codec, payload, n, d, dtype)
