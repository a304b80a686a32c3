"""Names of a harvest's objects, in a directory or under a bucket's prefix.

    plan.json                          the plan: put once, never changed; another plan is refused
    shards/000012-3f9a64c05b1e.safetensors   the rows of unit 12; the second part is the start of the file's SHA-256
    receipts/000012.json               receipt of unit 12, which is committed: its files, with checksums
    manifest.json                      the whole harvest, once every unit is committed
    state.json, dataset_info.json      arrow only: `datasets.load_from_disk` needs them

    owners/9b1c….json                  during a run: one harvest, with its heartbeat
    claims/000012.1                    during a run: the harvest that works on unit 12; `.2` is the next, after a takeover

A shard's name is derived from its bytes. Two different results of one unit therefore never overwrite each other, and the
receipt, a put-if-absent, decides which of them counts. Claims and owners are removed at the end of the run; they only keep work
from being done twice.
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
#: Suffixes of shards.
SUFFIXES = ("safetensors", "arrow")
#: Hex digits of a shard's SHA-256 in its name.
_DIGITS = 12


def shard(unit: int, sha256: str, suffix: str) -> str:
    """Return the name of a unit's shard. `sha256`: of the file, in hex."""
    return f"{SHARDS}/{unit:06d}-{sha256[:_DIGITS]}.{suffix}"


def receipt(unit: int) -> str:
    """Return the name of a unit's receipt."""
    return f"{RECEIPTS}/{unit:06d}.json"


def owner(name: str) -> str:
    """Return the name of a harvest's owner file."""
    return f"{OWNERS}/{name}.json"


def claim(unit: int, turn: int) -> str:
    """Return the name of the `turn`-th claim on a unit, from 1."""
    return f"{CLAIMS}/{unit:06d}.{turn}"


def unit_of_receipt(name: str) -> int | None:
    """Return the unit of a receipt's name; None for any other name."""
    number = name.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
    return int(number) if number.isascii() and number.isdecimal() else None


def turn_of_claim(name: str) -> tuple[int, int] | None:
    """Return (unit, turn) of a claim's name; None for any other name."""
    unit, _, turn = name.removeprefix(f"{CLAIMS}/").partition(".")
    is_ours = all(part.isascii() and part.isdecimal() for part in (unit, turn))
    return (int(unit), int(turn)) if is_ours else None
