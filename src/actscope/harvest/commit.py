"""Receipt of a unit: states that its rows are published, with checksums to verify them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from actscope.errors import HarvestDamaged
from actscope.harvest import layout
from actscope.harvest.statistics import Count, SiteSums
from actscope.runtime.decoding import decode_json

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ShardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Published shard file: name, size in bytes, SHA-256 in hex."""

    name: str
    bytes: Count
    sha256: Sha256


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of a unit. It does not say who computed it, or when: two workers with the same result write the same receipt."""

    unit: Count
    id: str
    """Id of the unit, which rules out that a receipt of another plan is accepted."""
    texts: Count
    tokens: Count
    """Number of tokens that the model read."""
    left_over: Count
    """Number of tokens at the unit's end that did not fill a context and were not read. Packed texts only."""
    rows: Count
    files: tuple[ShardFile, ...]
    """Shard files; empty if the unit gave no row."""
    sums: dict[str, SiteSums]


def encode(receipt: Receipt) -> bytes:
    """Encode a receipt as JSON. The same receipt gives the same bytes."""
    return msgspec.json.encode(receipt, order="deterministic") + b"\n"


def decode(data: bytes, where: str) -> Receipt:
    """Decode a receipt. Raises HarvestDamaged, naming `where`, if the data is not a receipt."""
    receipt = decode_json(data, Receipt, HarvestDamaged, f"{where}: is not the receipt of a unit")
    for file in receipt.files:
        check_name(file.name, receipt.unit, file.sha256, where)
    return receipt


def check_name(name: str, unit: int, sha256: str, where: str) -> None:
    """Raise HarvestDamaged unless `name` is that of the unit's shard with these bytes: it then lies in the folder of shards."""
    if name not in [layout.shard(unit, sha256, suffix) for suffix in layout.SUFFIXES]:
        expected = layout.shard(unit, sha256, layout.SUFFIXES[0])
        raise HarvestDamaged(f"{where}: {name[:200]!r} is not the name of a shard of unit {unit}, such as {expected!r}")
