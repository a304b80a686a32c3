"""The small records of a recording: tokens, marks, drops and sessions; JSON, so that any MCAP reader shows them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from actscope.errors import RecordingDamaged


class Token(msgspec.Struct, frozen=True):
    """A token recorded by hand: what `record_token` was told."""

    request: str
    position: int
    token_id: int
    text: str
    time_ns: int


class Tokens(msgspec.Struct, frozen=True):
    """Texts of token ids that had not come before, and tokens recorded by hand."""

    texts: dict[int, str] = {}
    tokens: list[Token] = []


class Mark(msgspec.Struct, frozen=True):
    """A request that was chosen to be kept, and why."""

    request: str
    why: str
    time_ns: int
    wall_ns: int


class Drop(msgspec.Struct, frozen=True):
    """Rows `first_row .. first_row + n_rows` that one site has lost, and to what."""

    site: str
    first_row: int
    n_rows: int
    why: str = "queue full"


class Drops(msgspec.Struct, frozen=True):
    """Losses since the last such record."""

    drops: list[Drop]


class Session(msgspec.Struct, frozen=True):
    """A writer has begun (or, with `ended`, has come to its end); the clock pair maps its times to wall time."""

    monotonic_ns: int
    wall_ns: int
    boot_id: str
    version: str
    first_row: int
    ended: bool = False
    stats: dict[str, Any] = {}


R = TypeVar("R", bound=msgspec.Struct)


def read(body: bytes | memoryview, kind: type[R]) -> R:
    """One record. Raises RecordingDamaged where it is not what it should be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RecordingDamaged(f"a record of {kind.__name__.lower()} cannot be read: {error}") from error


def write(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)
