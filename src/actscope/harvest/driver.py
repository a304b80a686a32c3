"""Driver of a harvest: submits units to a crew of workers until all have receipts, then writes the manifest.

Resuming works the same on every storage and with every crew: a unit with a receipt is done, all others remain. Concurrent
harvests of one plan in one place share its units through claims, and the first to see all receipts writes the manifest.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from actscope.errors import EngineError, HarvestDamaged, HarvestError
from actscope.harvest import commit as receipts
from actscope.harvest import layout
from actscope.harvest import manifest as manifests
from actscope.harvest import plan as plans
from actscope.harvest.claims import LEASE_S, Claims
from actscope.harvest.commit import Receipt
from actscope.harvest.manifest import HarvestManifest, manifest_of
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.storage import Storage
from actscope.harvest.workers.contract import Crew, Died, Done, Event, WorkerFailed

Progress = Callable[[str, int, int], None]

#: Number of workers that a unit may cost before the harvest gives up.
_MOST_TRIES = 3
_TICK_S = 0.5
_READERS = 16


@dataclass(frozen=True, slots=True)
class Report:
    """Result of `harvest`. `manifest` covers the whole harvest; the fields `*_here` count what this call computed."""

    manifest: HarvestManifest
    units_here: int
    rows_here: int
    tokens_here: int
    seconds: float
    """Time from the first unit to the manifest."""
    workers_lost: int


def harvest(storage: Storage, crew: Crew, progress: Progress, *, lease_s: float = LEASE_S) -> Report:
    """Start or resume the harvest of a crew's plan, and return when every unit is committed. Closes the crew.

    After an error or Ctrl-C, the same call resumes.

    Args:
        storage: Place of the harvest.
        crew: Workers that compute units. One of them proposes the plan.
        progress: Called with ("units", committed units, all units).
        lease_s: Seconds without a heartbeat after which other harvests take over our units.

    Returns:
        The manifest, and counts of this call.

    Raises:
        SettingsError: A setting cannot be met, or the place holds another plan.
        HarvestError: The storage failed, or does not support put-if-absent.
        HarvestDamaged: The place holds a plan, a receipt or a manifest that is malformed or does not belong to this plan.
        EngineError: The model failed, or one unit has ended three workers.
    """
    try:
        check_put_new(storage)
        proposal = crew.propose()
        settle(storage, proposal.plan)
        with Claims(storage, lease_s) as claims:
            work = _Work(storage, crew, claims, proposal.plan, progress, lease_s)
            return work.run()
    finally:
        crew.close()


def settle(storage: Storage, plan: HarvestPlan) -> None:
    """Store the plan of the place.

    Raises:
        SettingsError: The place has another plan; the message names every difference.
        HarvestDamaged: The place has the same plan in other bytes.
    """
    if not storage.put_new(layout.PLAN, plans.encode(plan)):
        where = f"{storage.url}/{layout.PLAN}"
        plans.check_same(held_plan(storage), plan, where)
        raise HarvestDamaged(f"{where}: is the same plan in other bytes; it was edited, or written by another program")


def held_plan(storage: Storage) -> HarvestPlan:
    """Return the plan of the place. Raises HarvestError if it has none."""
    data = storage.get(layout.PLAN)
    if data is None:
        raise HarvestError(f"{storage.url}: there is no harvest here: expected {layout.PLAN}")
    return plans.decode(data, f"{storage.url}/{layout.PLAN}")


def check_put_new(storage: Storage) -> None:
    """Raise HarvestError unless the storage supports put-if-absent, on which everything else relies."""
    name = f"{layout.OWNERS}/{time.time_ns()}.check"
    try:
        if not storage.put_new(name, b"first") or storage.put_new(name, b"second"):
            raise HarvestError(
                f"{storage.url}: this storage overwrites an object in spite of If-None-Match: *; "
                "harvest to storage that supports it, or to a local directory"
            )
    finally:
        storage.delete([name])


def committed(storage: Storage, plan: HarvestPlan) -> set[int]:
    """Return the numbers of the units that have a receipt."""
    found = map(layout.unit_of_receipt, storage.names(layout.RECEIPTS))
    return {unit for unit in found if unit is not None and unit < plan.n_units}


def all_receipts(storage: Storage, plan: HarvestPlan) -> list[Receipt]:
    """Return the receipts of all units. Raises HarvestDamaged if one is missing, malformed, or of another plan."""
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda unit: read_receipt(storage, plan, unit), range(plan.n_units)))


def read_receipt(storage: Storage, plan: HarvestPlan, unit: int) -> Receipt:
    """Return the receipt of a unit. Raises HarvestDamaged if it is missing, malformed, or of another plan."""
    where = f"{storage.url}/{layout.receipt(unit)}"
    data = storage.get(layout.receipt(unit))
    if data is None:
        raise HarvestDamaged(f"{where}: is missing; harvest again to compute the unit again")
    receipt = receipts.decode(data, where)
    if (receipt.unit, receipt.id) != (unit, plan.unit(unit).id):
        raise HarvestDamaged(f"{where}: is of unit {receipt.unit}, {receipt.id}; expected {unit}, {plan.unit(unit).id}")
    return receipt


class _Work:
    """One harvest's share of a plan.

    States of a unit:

    to do -> claimed by us -> submitted -> committed
          -> claimed by another harvest -> committed, or claimed by us if that harvest is dead
    """

    def __init__(
        self, storage: Storage, crew: Crew, claims: Claims, plan: HarvestPlan, progress: Progress, lease_s: float
    ) -> None:
        self._storage, self._crew, self._claims, self._plan = storage, crew, claims, plan
        self._progress = progress
        self._look_every_s = min(5.0, lease_s / 8)
        self._done = committed(storage, plan)
        self._again: deque[int] = deque()
        self._tries: Counter[int | None] = Counter()
        self._looked = 0.0
        self._here: list[Receipt] = []
        self._lost = 0
        open_units = [unit for unit in range(plan.n_units) if unit not in self._done]
        free = set(claims.free(open_units))
        self._todo = deque(unit for unit in open_units if unit in free)
        self._others = {unit for unit in open_units if unit not in free}

    def run(self) -> Report:
        begin = time.monotonic()
        self._tell()
        while len(self._done) < self._plan.n_units:
            self._crew.muster(self._plan.n_units - len(self._done))
            self._hand_out()
            for event in self._crew.wait(_TICK_S):
                self._hear(event)
        manifest = publish_manifest(self._storage, self._plan)
        self._claims.clear()
        return Report(
            manifest=manifest,
            units_here=len(self._here),
            rows_here=sum(receipt.rows for receipt in self._here),
            tokens_here=sum(receipt.tokens for receipt in self._here),
            seconds=time.monotonic() - begin,
            workers_lost=self._lost,
        )

    def _hand_out(self) -> None:
        while self._crew.free and (unit := self._next()) is not None:
            self._crew.submit(self._plan, unit)

    def _next(self) -> int | None:
        """Return a unit that we have claimed, to submit it; None if there is none at the moment."""
        if self._again:
            return self._again.popleft()
        while self._todo:
            unit = self._todo.popleft()
            if self._claims.take(unit):
                return unit
            self._others.add(unit)
        return self._taken_over() if self._others and self._may_look() else None

    def _may_look(self) -> bool:
        now = time.monotonic()
        if now - self._looked < self._look_every_s:
            return False
        self._looked = now
        return True

    def _taken_over(self) -> int | None:
        """Claim a unit whose holder is dead, and return it. Also records the units that others have committed."""
        fresh = committed(self._storage, self._plan) - self._done
        self._done |= fresh
        self._others -= fresh
        self._tell()
        unit = next((unit for unit in sorted(self._others) if self._claims.take(unit)), None)
        if unit is not None:
            self._others.remove(unit)
            self._looked = 0.0  # there may be more
        return unit

    def _hear(self, event: Event) -> None:
        if isinstance(event, Done):
            self._tries[None] = 0  # workers lost before their first unit: only consecutive ones count
            self._done.add(event.receipt.unit)
            self._here.append(event.receipt)
            self._tell()
            return
        self._lost += 1
        self._tries[event.unit] += 1
        if isinstance(event, WorkerFailed) and not isinstance(event.error, EngineError):
            raise event.error  # of settings or of the storage: another worker would fail the same way
        if self._tries[event.unit] >= _MOST_TRIES:
            raise _given_up(event, self._tries[event.unit])
        if event.unit is not None:
            self._again.append(event.unit)

    def _tell(self) -> None:
        self._progress("units", len(self._done), self._plan.n_units)


def publish_manifest(storage: Storage, plan: HarvestPlan) -> HarvestManifest:
    """Write the manifest of a harvest whose units are all committed. Idempotent.

    Raises:
        HarvestDamaged: A receipt is missing or malformed, or the place has a manifest that does not match the receipts.
    """
    manifest = manifest_of(plan, all_receipts(storage, plan))
    if plan.shard_format == "arrow":
        from actscope.harvest.shards.arrow import description

        for name, data in description(plan, [shard.name for shard in manifest.shards]).items():
            storage.put(name, data)
    if not storage.put_new(layout.MANIFEST, manifests.encode(manifest)):
        raise HarvestDamaged(
            f"{storage.url}/{layout.MANIFEST}: does not match the receipts in this place; see --verify"
        )
    return manifest


def _given_up(event: Died | WorkerFailed, tries: int) -> Exception:
    what = "opening the model" if event.unit is None else f"unit {event.unit}"
    if isinstance(event, WorkerFailed):
        return EngineError(f"{what} failed {tries} times, at last: {event.error}")
    return EngineError(
        f"{what}: {tries} workers died of it, the last one {event.why}; SIGKILL mostly means that memory ran out: "
        "use smaller units (--unit-texts) or fewer workers (--workers)"
    )
