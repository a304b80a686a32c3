"""Changed copies of real bytes: flipped, cut, doubled, with numbers at the edges of their types, and JSON of wrong kinds."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable

#: Numbers at which sizes, counts and offsets go wrong.
EDGES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_TOKEN = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\"(?:[^\"\\]|\\.)*\"|true|false|null")
_VALUES = (
    b"0", b"-1", b"1e400", b"1e308", b"-1e308", b"1" * 400, b"9" * 5000, b"18446744073709551616", b"9223372036854775808", b"0.5",
    b"null", b"true", b"[]", b"{}", b'""', b'"\\u0000\\u001b[2J"', b'"\xff\xfe"', b'"\\ud800"', b'"' + b"x" * 3000 + b'"',
    b"[" * 3000 + b"]" * 3000, b'{"a":' * 2000 + b"1" + b"}" * 2000, b"[1,2]", b'{"a":1}', b"NaN", b"Infinity",
    b'"../../../etc/passwd"',
)  # fmt: skip


def flipped(data: bytearray, chance: random.Random) -> None:
    """Flip some bits."""
    for _ in range(chance.randint(1, 8)):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: random.Random) -> None:
    """Cut off the end, or take out a stretch."""
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 8, 64, len(data)))]


def doubled(data: bytearray, chance: random.Random) -> None:
    """Repeat a stretch, or put random bytes in."""
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.choice((1, 8, 200))] if chance.random() < 0.5 else chance.randbytes(12)
    data[start:start] = piece


def edged(data: bytearray, chance: random.Random) -> None:
    """Overwrite an integer of 1, 2, 4 or 8 bytes by one at the edge of its type."""
    size = chance.choice((1, 2, 4, 8))
    if len(data) >= size:
        at = chance.randrange(len(data) - size + 1)
        if chance.random() < 0.7:
            at = at // size * size
        number = chance.choice(EDGES) & ((1 << 8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))


def revalued(data: bytearray, chance: random.Random) -> None:
    """Replace a value or a key of JSON by one of another kind."""
    places = [match.span() for match in _TOKEN.finditer(bytes(data[: 1 << 16]))]
    if places:
        start, end = chance.choice(places)
        data[start:end] = chance.choice(_VALUES)


BINARY: tuple[Callable[[bytearray, random.Random], None], ...] = (flipped, cut, doubled, edged, edged)
TEXT: tuple[Callable[[bytearray, random.Random], None], ...] = (revalued, revalued, revalued, flipped, cut, doubled)


def repacked(seed: bytes, chance: random.Random) -> bytes:
    """Return a zip archive with one member changed, packed again, so that its checksums are right; or a changed archive."""
    if chance.random() < 0.3:
        return changed(seed, chance)
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(sorted(members))
    members[name] = changed(members[name], chance)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return out.getvalue()


def changed(seed: bytes, chance: random.Random) -> bytes:
    """Return a changed copy of a seed, which is taken for JSON if it begins or ends like it."""
    data = bytearray(seed)
    ways = TEXT if seed[:1] in (b"{", b"[") or seed.rstrip()[-1:] == b"}" else (*BINARY, revalued)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(ways)(data, chance)
    return bytes(data)
