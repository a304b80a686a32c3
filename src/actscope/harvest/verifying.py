"""Verification of a harvest: checks every byte against its receipts and its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from actscope.errors import HarvestDamaged
from actscope.harvest import layout
from actscope.harvest import manifest as manifests
from actscope.harvest.commit import Receipt, ShardFile
from actscope.harvest.driver import committed, held_plan, read_receipt
from actscope.harvest.manifest import HarvestManifest, manifest_of
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.shards.reading import check_shard
from actscope.harvest.storage import Storage

Progress = Callable[[str, int, int], None]


@dataclass
class HarvestVerdict:
    """Result of `verify`.

    Attributes:
        path: Place of the harvest.
        units: Number of units of the plan.
        committed: Number of units with a receipt.
        rows: Number of rows in the valid receipts.
        bytes: Size of the shards that were found.
        finished: Whether there is a manifest.
        problems: Damage that was found, one message each.
    """

    path: str
    units: int = 0
    committed: int = 0
    rows: int = 0
    bytes: int = 0
    finished: bool = False
    problems: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Shards that no receipt names, left by workers that were killed or were slower than another. They may be removed."""

    @property
    def ok(self) -> bool:
        """Whether everything that was committed is there, complete and unchanged."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        """Return the result for a terminal."""
        state = "finished" if self.finished else "not finished: the command that began it resumes it"
        lines = [*self.problems, f"{self.path}: {'ok' if self.ok else 'DAMAGED'}"]
        lines.append(f"  {self.committed} of {self.units} units, {self.rows} rows, {self.bytes} bytes; {state}")
        lines += [f"  {name}: no receipt names it; it may be removed" for name in self.strays]
        return "\n".join(lines)


def verify(storage: Storage, progress: Progress) -> HarvestVerdict:
    """Read and check everything; change nothing. Damage is reported in the result, not raised.

    Args:
        storage: Place of the harvest.
        progress: Called with ("shards", checked receipts, all receipts).

    Raises:
        HarvestError: There is no harvest, or the storage failed.
        HarvestDamaged: The plan is malformed.
        SettingsError: The harvest has another version.
    """
    plan = held_plan(storage)
    units = sorted(committed(storage, plan))
    verdict = HarvestVerdict(storage.url, units=plan.n_units, committed=len(units))
    receipts = [found for unit in units if (found := _receipt(storage, plan, unit, verdict)) is not None]
    known: set[str] = set()
    for done, receipt in enumerate(receipts, 1):
        for file in receipt.files:
            known.add(file.name)
            _check_shard(storage, plan, receipt, file, verdict)
        verdict.rows += receipt.rows
        progress("shards", done, len(receipts))
    _check_manifest(storage, plan, receipts, verdict)
    verdict.strays = [name for name in storage.names(layout.SHARDS) if name not in known]
    return verdict


def _receipt(storage: Storage, plan: HarvestPlan, unit: int, verdict: HarvestVerdict) -> Receipt | None:
    try:
        return read_receipt(storage, plan, unit)
    except HarvestDamaged as error:
        verdict.problems.append(str(error))
        return None


def _check_shard(
    storage: Storage, plan: HarvestPlan, receipt: Receipt, file: ShardFile, verdict: HarvestVerdict
) -> None:
    where = f"{storage.url}/{file.name}"
    size = storage.size(file.name)
    if size is None:
        verdict.problems.append(f"{where}: is missing; expected {file.bytes} bytes")
        return
    digest, data = hashlib.sha256(), bytearray()
    for chunk in storage.chunks(file.name):
        digest.update(chunk)
        data += chunk if len(data) < _HEAD else b""
    verdict.bytes += size
    if (size, digest.hexdigest()) != (file.bytes, file.sha256):
        verdict.problems.append(
            f"{where}: has changed: expected {file.bytes} bytes, SHA-256 {file.sha256[:12]}…, "
            f"found {size} bytes, {digest.hexdigest()[:12]}…"
        )
    elif (wrong := check_shard(bytes(data), plan, receipt)) is not None:
        verdict.problems.append(f"{where}: {wrong}")


def _check_manifest(storage: Storage, plan: HarvestPlan, receipts: list[Receipt], verdict: HarvestVerdict) -> None:
    data = storage.get(layout.MANIFEST)
    where = f"{storage.url}/{layout.MANIFEST}"
    if data is None:
        return
    verdict.finished = True
    if len(receipts) < plan.n_units:
        verdict.problems.append(f"{where}: exists, but {plan.n_units - len(receipts)} units have no valid receipt")
    elif (found := _read(data, where, verdict)) is not None and found != manifest_of(plan, receipts):
        verdict.problems.append(f"{where}: does not match the receipts")


def _read(data: bytes, where: str, verdict: HarvestVerdict) -> HarvestManifest | None:
    try:
        return manifests.decode(data, where)
    except HarvestDamaged as error:
        verdict.problems.append(str(error))
        return None


#: Bytes of a shard that are kept to read its header.
_HEAD = 1 << 20
