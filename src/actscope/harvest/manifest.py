"""Manifest of a finished harvest: its contents. It has the same bytes whichever worker computed which unit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actscope.errors import HarvestDamaged
from actscope.harvest.commit import Receipt
from actscope.harvest.plan import FORMAT, VERSION, HarvestPlan
from actscope.harvest.statistics import SiteStatistics, added, statistics_of


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shard. `rows`: number of rows at each site."""

    unit: int
    name: str
    bytes: int
    sha256: str
    rows: int


class HarvestManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Contents of a finished harvest, in the order of the units.

    Attributes:
        format: Name of the format.
        version: Version of the format.
        plan_id: Id of the plan.
        plan: Plan of the harvest.
        texts: Number of texts.
        tokens: Number of tokens that the model read.
        left_over: Number of tokens that did not fill a context and were not read. Packed texts only.
        rows: Number of rows at each site.
        bytes: Total size of the shards.
        shards: The shards. A unit that gave no row has none.
        sites: Statistics of each site.
    """

    format: str = FORMAT
    version: int = VERSION
    plan_id: str
    plan: HarvestPlan
    texts: int
    tokens: int
    left_over: int
    rows: int
    bytes: int
    shards: tuple[ShardEntry, ...]
    sites: dict[str, SiteStatistics]


def manifest_of(plan: HarvestPlan, receipts: Sequence[Receipt]) -> HarvestManifest:
    """Build the manifest from the receipts of all units, in the order of the units."""
    assert [receipt.unit for receipt in receipts] == list(range(plan.n_units))
    shards = tuple(
        ShardEntry(unit=receipt.unit, name=file.name, bytes=file.bytes, sha256=file.sha256, rows=receipt.rows)
        for receipt in receipts
        for file in receipt.files
    )
    return HarvestManifest(
        plan_id=plan.id,
        plan=plan,
        texts=sum(receipt.texts for receipt in receipts),
        tokens=sum(receipt.tokens for receipt in receipts),
        left_over=sum(receipt.left_over for receipt in receipts),
        rows=sum(receipt.rows for receipt in receipts),
        bytes=sum(shard.bytes for shard in shards),
        shards=shards,
        sites={
            site: statistics_of(added(r.sums[site] for r in receipts if site in r.sums), plan.d_model)
            for site in plan.sites
        },
    )


def encode(manifest: HarvestManifest) -> bytes:
    """Encode a manifest as JSON. The same manifest gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes, where: str) -> HarvestManifest:
    """Decode a manifest. Raises HarvestDamaged, naming `where`, if it is malformed or its plan does not match its plan id."""
    try:
        manifest = msgspec.json.decode(data, type=HarvestManifest)
    except msgspec.DecodeError as error:
        raise HarvestDamaged(f"{where}: is not the manifest of a harvest: {error}") from error
    if manifest.plan.id != manifest.plan_id:
        raise HarvestDamaged(f"{where}: expected the plan id {manifest.plan.id}, found {manifest.plan_id}")
    return manifest
