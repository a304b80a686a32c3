"""The harvest itself: units go out to a crew, receipts come back, and at the end there is a manifest.

Resuming is the same on every storage and with every crew: what has a receipt is done, everything else is to do. Several
harvests of one plan on one place share its units by their claims, and the first to see all receipts writes the manifest.
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

#: A unit that has cost so many workers is not tried again.
_MOST_TRIES = 3
_TICK_S = 0.5
_READERS = 16


@dataclass(frozen=True, slots=True)
class Report:
    """What a call of `harvest` did. `manifest` is of the whole harvest, whoever computed it."""

    manifest: HarvestManifest
    units_here: int
    rows_here: int
    tokens_here: int
    seconds: float
    """From the first unit that was handed out until the manifest."""
    workers_lost: int


def harvest(storage: Storage, crew: Crew, progress: Progress, *, lease_s: float = LEASE_S) -> Report:
    """Carry out a crew's plan, or go on with it, until every unit of it is committed. The crew is closed at the end.

    Raises SettingsError when the place holds another plan, HarvestError when the storage fails, EngineError when the model
    does, or when one unit ends worker after worker. After any of them, and after Ctrl-C, the same call goes on.
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
    """Make this the plan of the place. Raises SettingsError, naming every difference, when it has another one."""
    if not storage.put_new(layout.PLAN, plans.encode(plan)):
        where = f"{storage.url}/{layout.PLAN}"
        plans.check_same(held_plan(storage), plan, where)
        raise HarvestDamaged(f"{where}: the same plan in other bytes; it was edited, or written by another program")


def held_plan(storage: Storage) -> HarvestPlan:
    """The plan of the place. Raises HarvestError when it has none."""
    data = storage.get(layout.PLAN)
    if data is None:
        raise HarvestError(f"{storage.url}: there is no harvest here: expected {layout.PLAN}")
    return plans.decode(data, f"{storage.url}/{layout.PLAN}")


def check_put_new(storage: Storage) -> None:
    """Raises HarvestError unless the storage keeps the promise that everything stands on."""
    name = f"{layout.OWNERS}/{time.time_ns()}.check"
    try:
        if not storage.put_new(name, b"first") or storage.put_new(name, b"second"):
            raise HarvestError(
                f"{storage.url}: it puts an object in place of another although it was told not to (If-None-Match: *); "
                "harvest to storage that heeds it, or to a local directory"
            )
    finally:
        storage.delete([name])


def committed(storage: Storage, plan: HarvestPlan) -> set[int]:
    """The numbers of the units that have a receipt."""
    found = map(layout.unit_of_receipt, storage.names(layout.RECEIPTS))
    return {unit for unit in found if unit is not None and unit < plan.n_units}


def all_receipts(storage: Storage, plan: HarvestPlan) -> list[Receipt]:
    """Every unit's receipt. Raises HarvestDamaged when one is missing, or belongs to another plan."""
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda unit: read_receipt(storage, plan, unit), range(plan.n_units)))


def read_receipt(storage: Storage, plan: HarvestPlan, unit: int) -> Receipt:
    where = f"{storage.url}/{layout.receipt(unit)}"
    data = storage.get(layout.receipt(unit))
    if data is None:
        raise HarvestDamaged(f"{where}: is missing; harvest again to have the unit computed anew")
    receipt = receipts.decode(data, where)
    if (receipt.unit, receipt.id) != (unit, plan.unit(unit).id):
        raise HarvestDamaged(f"{where}: is of unit {receipt.unit}, {receipt.id}; expected {unit}, {plan.unit(unit).id}")
    return receipt


class _Work:
    """One harvest's share of a plan.

    unit:   to do -> claimed by us -> handed out -> committed
                  -> claimed by another -> committed; or, when that one is dead, claimed by us
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
        """A unit that is ours to hand out; None when there is none at the moment."""
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
        """A unit whose holder is dead. Also takes note of what others have committed."""
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
            self._tries[None] = 0  # of workers that did not come to their first unit: only those in a row count
            self._done.add(event.receipt.unit)
            self._here.append(event.receipt)
            self._tell()
            return
        self._lost += 1
        self._tries[event.unit] += 1
        if isinstance(event, WorkerFailed) and not isinstance(event.error, EngineError):
            raise event.error  # of settings or of the storage: another worker would say the same
        if self._tries[event.unit] >= _MOST_TRIES:
            raise _given_up(event, self._tries[event.unit])
        if event.unit is not None:
            self._again.append(event.unit)

    def _tell(self) -> None:
        self._progress("units", len(self._done), self._plan.n_units)


def publish_manifest(storage: Storage, plan: HarvestPlan) -> HarvestManifest:
    """Write the manifest of a harvest whose every unit is committed, or find it written."""
    manifest = manifest_of(plan, all_receipts(storage, plan))
    if plan.shard_format == "arrow":
        from actscope.harvest.shards.arrow import description

        for name, data in description(plan, [shard.name for shard in manifest.shards]).items():
            storage.put(name, data)
    if not storage.put_new(layout.MANIFEST, manifests.encode(manifest)):
        raise HarvestDamaged(
            f"{storage.url}/{layout.MANIFEST}: is not the manifest of the receipts that lie there; see --verify"
        )
    return manifest


def _given_up(event: Died | WorkerFailed, tries: int) -> Exception:
    what = "opening the model" if event.unit is None else f"unit {event.unit}"
    if isinstance(event, WorkerFailed):
        return EngineError(f"{what} failed {tries} times, at last: {event.error}")
    return EngineError(
        f"{what}: {tries} workers died of it, the last {event.why}; one that is killed by SIGKILL has mostly had too little "
        "memory: make units smaller (--unit-texts), or workers fewer (--workers)"
    )
