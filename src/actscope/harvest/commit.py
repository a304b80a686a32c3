"""Receipt of a unit: states that its rows are published, with checksums to verify them."""

from __future__ import annotations

import msgspec

from actscope.errors import HarvestDamaged
from actscope.harvest.statistics import SiteSums


class ShardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Published shard file: name, size in bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of a unit. It does not say who computed it, or when: two workers with the same result write the same receipt."""

    unit: int
    id: str
    """Id of the unit, which rules out that a receipt of another plan is accepted."""
    texts: int
    tokens: int
    """Number of tokens that the model read."""
    left_over: int
    """Number of tokens at the unit's end that did not fill a context and were not read. Packed texts only."""
    rows: int
    files: tuple[ShardFile, ...]
    """Shard files; empty if the unit gave no row."""
    sums: dict[str, SiteSums]


def encode(receipt: Receipt) -> bytes:
    """Encode a receipt as JSON. The same receipt gives the same bytes."""
    return msgspec.json.encode(receipt, order="deterministic") + b"\n"


def decode(data: bytes, where: str) -> Receipt:
    """Decode a receipt. Raises HarvestDamaged, naming `where`, if the data is not a receipt."""
    try:
        return msgspec.json.decode(data, type=Receipt)
    except msgspec.DecodeError as error:
        raise HarvestDamaged(f"{where}: is not the receipt of a unit: {error}") from error
