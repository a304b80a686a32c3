"""Small records of a recording: tokens, marks, drops and sessions. They are JSON, so any MCAP reader can show them."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from actscope.errors import RecordingDamaged
from actscope.runtime.decoding import decode_json

#: Numbers of rows and times, such that their sums stay within 64 bits.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Time = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]


class Token(msgspec.Struct, frozen=True):
    """A token that `Recorder.record_token` wrote."""

    request: str
    position: int
    token_id: int
    text: str
    time_ns: int


class Tokens(msgspec.Struct, frozen=True):
    """Texts of new token ids, and tokens that `Recorder.record_token` wrote."""

    texts: dict[int, str] = {}
    tokens: list[Token] = []


class Mark(msgspec.Struct, frozen=True):
    """Mark: a request that was selected to be kept, and why."""

    request: str
    why: str
    time_ns: Time
    wall_ns: Time


class Drop(msgspec.Struct, frozen=True):
    """Rows `first_row .. first_row + n_rows` that one site lost, and why."""

    site: str
    first_row: Count
    n_rows: Count
    why: str = "queue full"


class Drops(msgspec.Struct, frozen=True):
    """Drops since the previous such record."""

    drops: list[Drop]


class Session(msgspec.Struct, frozen=True):
    """Start of a writer, or its end if `ended`. The clock pair maps CLOCK_MONOTONIC times to wall time."""

    monotonic_ns: Time
    wall_ns: Time
    boot_id: str
    version: str
    first_row: Count
    ended: bool = False
    stats: dict[str, object] = {}


R = TypeVar("R", bound=msgspec.Struct)


def read(body: bytes | memoryview, kind: type[R]) -> R:
    """Decode one record. Raises RecordingDamaged when it is not a valid `kind`."""
    return decode_json(body, kind, RecordingDamaged, f"a record of {kind.__name__.lower()} cannot be read")


def write(record: msgspec.Struct) -> bytes:
    """Encode one record as JSON."""
    return msgspec.json.encode(record)
