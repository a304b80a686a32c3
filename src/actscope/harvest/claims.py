"""Who works on which unit, so that harvests which share a place share its work, and what a dead one had claimed is taken over.

    claims/000012.1   put if absent; holds the name of the harvest whose unit 12 is
    claims/000012.2   the same, by the one that took over, once the first was seen to be dead
    owners/NAME.json  a harvest, put again and again with a counter that goes up: its heartbeat

No two clocks are compared: a harvest is dead for another when that one has not seen the counter move for the lease, by its
own clock; at once when it ran on the same machine and its process is gone, or when it has left and taken its file along.
A harvest that was only very slow, and is taken for dead, does no harm: shards are named by their content, and the first
receipt counts.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from actscope.errors import HarvestDamaged, HarvestError
from actscope.harvest import layout
from actscope.harvest.storage import Storage
from actscope.runtime.boot import boot_id
from actscope.runtime.process import process_start

LEASE_S = 60.0


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """A harvest at work, as its file says it."""

    name: str
    machine: str
    """Of one boot of one machine, and of one namespace of process ids in it."""
    pid: int
    started: str
    """When that process started, as the kernel counts: another process of the same id has another."""
    beat: int
    lease_s: float


class Claims:
    """One harvest's hold on units. Use as a context manager: on the way in it makes itself known, on the way out it leaves."""

    def __init__(self, storage: Storage, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = secrets.token_hex(8)
        self._storage = storage
        self._lease_s = lease_s
        self._clock = clock
        self._beat = 0
        self._turns: dict[int, int] = {}  # of each unit, the last turn that is known
        self._holders: dict[tuple[int, int], str] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # of each owner, its last beat and when we first saw it
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def __enter__(self) -> Claims:
        self._put_owner()
        self.survey()
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._heart.join()
        with suppress(HarvestError):  # if the storage has gone, others wait for the lease instead
            self._storage.delete([layout.owner(self.name)])

    def survey(self) -> None:
        """Learn what others have claimed."""
        for name in self._storage.names(layout.CLAIMS):
            if (found := layout.turn_of_claim(name)) is not None:
                unit, turn = found
                self._turns[unit] = max(turn, self._turns.get(unit, 0))

    def take(self, unit: int) -> bool:
        """Claim a unit that nobody holds, or whose holder is dead. False when another holds it."""
        turn = self._turns.get(unit, 0)
        if turn and not self._is_dead(self._holder(unit, turn)):
            return False
        if self._storage.put_new(layout.claim(unit, turn + 1), self.name.encode()):
            self._turns[unit], self._holders[unit, turn + 1] = turn + 1, self.name
            return True
        self.survey()
        return False

    def free(self, units: Iterable[int]) -> list[int]:
        """Those of these units that nobody had claimed when we last looked."""
        return [unit for unit in units if unit not in self._turns]

    def clear(self) -> None:
        """Remove every claim, and every owner but us: for when all units are committed."""
        gone = self._storage.names(layout.CLAIMS) + self._storage.names(layout.OWNERS)
        self._storage.delete([name for name in gone if name != layout.owner(self.name)])

    def _holder(self, unit: int, turn: int) -> str:
        """Whose claim it is; "" when it has been removed."""
        if (unit, turn) not in self._holders:
            held = self._storage.get(layout.claim(unit, turn))
            self._holders[unit, turn] = held.decode("ascii", "replace") if held else ""
        return self._holders[unit, turn]

    def _is_dead(self, name: str) -> bool:
        if name == self.name:
            return False
        held = self._storage.get(layout.owner(name)) if name.isalnum() else None
        if held is None:
            return True
        owner = _decode(held, layout.owner(name))
        if owner.machine == this_machine():
            return _started(owner.pid) != owner.started
        now = self._clock()
        beat, since = self._seen.get(name, (-1, now))
        if beat != owner.beat:
            self._seen[name] = (owner.beat, now)
            return False
        return now - since > owner.lease_s

    def _keep_beating(self) -> None:
        while not self._over.wait(self._lease_s / 4):
            try:
                self._put_owner()
            except HarvestError:
                continue  # the work itself will say so; meanwhile others may take us for dead, which costs only work

    def _put_owner(self) -> None:
        self._beat += 1
        owner = Owner(
            name=self.name,
            machine=this_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            beat=self._beat,
            lease_s=self._lease_s,
        )
        self._storage.put(layout.owner(self.name), msgspec.json.encode(owner))


def this_machine() -> str:
    """Where process ids mean the same as here; "" where the kernel does not say."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    boot = boot_id()
    return f"{boot}/{namespace}" if boot and namespace else f"unknown-{secrets.token_hex(8)}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" when there is none of this id, or it has ended and is not yet reaped."""
    started = process_start(pid)
    return "" if started is None else str(started)


def _decode(data: bytes, where: str) -> Owner:
    try:
        return msgspec.json.decode(data, type=Owner)
    except msgspec.DecodeError as error:
        raise HarvestDamaged(
            f"{where}: is no owner's file: {error}; remove it if no harvest is at work here"
        ) from error
