"""Claims on units: concurrent harvests of one plan share its units, and take over those of a dead harvest.

    claims/000012.1   put-if-absent; contains the name of the harvest that works on unit 12
    claims/000012.2   the same for the harvest that took over, after the first was found dead
    owners/NAME.json  one harvest, put again and again with an increasing counter: its heartbeat

Clocks of different machines are never compared. A harvest counts as dead when the observer, by its own clock, has not seen the
counter change for the length of the lease. It counts as dead at once when its owner file is gone, or when it ran on the
observer's machine and its process has ended. Taking a slow harvest for dead does no harm: shards are named by their content, and
the first receipt counts.
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
from actscope.runtime.decoding import decode_json
from actscope.runtime.process import process_start

LEASE_S = 60.0


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Owner file of a running harvest."""

    name: str
    machine: str
    """Identifies one boot of one machine, and one namespace of process ids on it."""
    pid: int
    started: str
    """Start time of that process, in the kernel's ticks. It tells the process from a later one with the same id."""
    beat: int
    lease_s: float


class Claims:
    """Claims of one harvest, used as a context manager: entry puts the owner file and starts the heartbeat, exit removes it.

    Claims stay in the storage at exit. Without the owner file, other harvests can take them over at once.
    """

    def __init__(self, storage: Storage, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = secrets.token_hex(8)
        self._storage = storage
        self._lease_s = lease_s
        self._clock = clock
        self._beat = 0
        self._turns: dict[int, int] = {}  # last known turn of each unit
        self._holders: dict[tuple[int, int], str] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # last beat of each owner, and when it was first seen
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
        with suppress(HarvestError):  # if the storage is gone, others wait for the lease instead
            self._storage.delete([layout.owner(self.name)])

    def survey(self) -> None:
        """Read the claims of all harvests from the storage."""
        for name in self._storage.names(layout.CLAIMS):
            if (found := layout.turn_of_claim(name)) is not None:
                unit, turn = found
                self._turns[unit] = max(turn, self._turns.get(unit, 0))

    def take(self, unit: int) -> bool:
        """Claim a unit that has no holder, or whose holder is dead. Return False if another harvest holds it."""
        turn = self._turns.get(unit, 0)
        if turn and not self._is_dead(self._holder(unit, turn)):
            return False
        if self._storage.put_new(layout.claim(unit, turn + 1), self.name.encode()):
            self._turns[unit], self._holders[unit, turn + 1] = turn + 1, self.name
            return True
        self.survey()
        return False

    def free(self, units: Iterable[int]) -> list[int]:
        """Return those of the units that had no claim at the last `survey`."""
        return [unit for unit in units if unit not in self._turns]

    def clear(self) -> None:
        """Remove all claims, and all owner files but our own. Call when all units are committed."""
        gone = self._storage.names(layout.CLAIMS) + self._storage.names(layout.OWNERS)
        self._storage.delete([name for name in gone if name != layout.owner(self.name)])

    def _holder(self, unit: int, turn: int) -> str:
        """Return the name of the harvest that made a claim; "" if the claim was removed."""
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
                continue  # the work itself reports it; others may take us for dead, which only costs work

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
    """Identify this boot and this namespace of process ids. A random id where the kernel does not tell: it equals no other."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    boot = boot_id()
    return f"{boot}/{namespace}" if boot and namespace else f"unknown-{secrets.token_hex(8)}"


def _started(pid: int) -> str:
    """Return the start time of a process, in ticks since boot; "" if there is none, or it has ended and is not yet reaped."""
    started = process_start(pid)
    return "" if started is None else str(started)


def _decode(data: bytes, where: str) -> Owner:
    what = f"{where}: is not an owner file (remove it if no harvest is running here)"
    return decode_json(data, Owner, HarvestDamaged, what)
