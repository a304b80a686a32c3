"""The receipt of a unit: its rows are published, and this is how to tell that they are whole."""

from __future__ import annotations

import msgspec

from actscope.errors import HarvestDamaged
from actscope.harvest.statistics import SiteSums


class ShardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published shard."""

    name: str
    bytes: int
    sha256: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a unit came to. It holds nothing of who computed it or when: any two that computed it alike wrote the same receipt."""

    unit: int
    id: str
    """The unit's, so that a receipt of another plan is never taken for one of this."""
    texts: int
    tokens: int
    """Tokens that the model read."""
    left_over: int
    """Tokens at the unit's end that filled no whole context: packed texts only. They were not read."""
    rows: int
    files: tuple[ShardFile, ...]
    """Empty when the unit gave no row."""
    sums: dict[str, SiteSums]


def encode(receipt: Receipt) -> bytes:
    return msgspec.json.encode(receipt, order="deterministic") + b"\n"


def decode(data: bytes, where: str) -> Receipt:
    """Raises HarvestDamaged, naming `where`, for what is no receipt."""
    try:
        return msgspec.json.decode(data, type=Receipt)
    except msgspec.DecodeError as error:
        raise HarvestDamaged(f"{where}: is no receipt of a unit: {error}") from error
