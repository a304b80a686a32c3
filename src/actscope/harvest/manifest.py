"""Manifest of a finished harvest: its contents. It has the same bytes whichever worker computed which unit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actscope.errors import HarvestDamaged
from actscope.harvest.commit import Receipt, Sha256, check_name
from actscope.harvest.plan import FORMAT, VERSION, HarvestPlan, out_of_range
from actscope.harvest.statistics import Count, SiteStatistics, added, statistics_of
from actscope.runtime.decoding import decode_json


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shard. `rows`: number of rows at each site."""

    unit: Count
    name: str
    bytes: Count
    sha256: Sha256
    rows: Count


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
    texts: Count
    tokens: Count
    left_over: Count
    rows: Count
    bytes: Count
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
    what = f"{where}: is not the manifest of a harvest"
    manifest = decode_json(data, HarvestManifest, HarvestDamaged, what)
    if (wrong := out_of_range(manifest.plan)) is not None:
        raise HarvestDamaged(f"{what}: {wrong}")
    if manifest.plan.id != manifest.plan_id:
        raise HarvestDamaged(f"{where}: expected the plan id {manifest.plan.id}, found {manifest.plan_id}")
    for shard in manifest.shards:
        check_name(shard.name, shard.unit, shard.sha256, where)
    if (rows := sum(shard.rows for shard in manifest.shards)) != manifest.rows:
        raise HarvestDamaged(f"{where}: its shards have {rows} rows, and it says {manifest.rows}")
    return manifest
