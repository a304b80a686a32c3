"""What lies where in a harvest's place, be it a directory or a bucket's prefix.

    plan.json                          what is harvested: put once, never changed; another plan is refused
    shards/000012-3f9a64c05b1e.safetensors   the rows of unit 12; the second part is the start of their SHA-256
    receipts/000012.json               unit 12 is committed: these rows, in these files, with these checksums
    manifest.json                      the whole harvest, once every unit is committed
    state.json, dataset_info.json      arrow only: `datasets.load_from_disk` opens the place by these

    owners/9b1c….json                  while harvests are at work: a harvest, with its heartbeat
    claims/000012.1                    … and whose unit 12 is; `.2` when a second harvest took it over from a dead first

A shard's name follows from its bytes, so two that were computed twice and differ never overwrite each other; the receipt, put
if absent, says which of them counts. Claims and owners are removed at the end: they only save work from being done twice.
"""

from __future__ import annotations

PLAN = "plan.json"
MANIFEST = "manifest.json"
SHARDS = "shards"
RECEIPTS = "receipts"
OWNERS = "owners"
CLAIMS = "claims"
ARROW_STATE = "state.json"
ARROW_INFO = "dataset_info.json"
#: Hex digits of a shard's SHA-256 in its name.
_DIGITS = 12


def shard(unit: int, sha256: str, suffix: str) -> str:
    return f"{SHARDS}/{unit:06d}-{sha256[:_DIGITS]}.{suffix}"


def receipt(unit: int) -> str:
    return f"{RECEIPTS}/{unit:06d}.json"


def owner(name: str) -> str:
    return f"{OWNERS}/{name}.json"


def claim(unit: int, turn: int) -> str:
    return f"{CLAIMS}/{unit:06d}.{turn}"


def unit_of_receipt(name: str) -> int | None:
    """Which unit a receipt's name belongs to; None for a name that is none of ours."""
    number = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
    return int(number) if number.isascii() and number.isdecimal() else None


def turn_of_claim(name: str) -> tuple[int, int] | None:
    """(unit, turn) of a claim's name; None for a name that is none of ours."""
    unit, _, turn = name.removeprefix(f"{CLAIMS}/").partition(".")
    is_ours = all(part.isascii() and part.isdecimal() for part in (unit, turn))
    return (int(unit), int(turn)) if is_ours else None
