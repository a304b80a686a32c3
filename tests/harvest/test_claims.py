"""Claims: who works on which unit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support.waiting import until

from actscope.harvest import claims as claims_module
from actscope.harvest.claims import Claims, Owner, this_machine
from actscope.harvest.storage import Storage, open_storage
from actscope.runtime.boot import boot_id


@pytest.fixture
def storage(place: str) -> Storage:
    return open_storage(place)


def put_owner(storage: Storage, name: str, **changes: object) -> None:
    """An owner's file as a harvest elsewhere would write it."""
    owner = Owner(name=name, machine="elsewhere", pid=1, started="1", beat=1, lease_s=60.0)
    storage.put(f"owners/{name}.json", msgspec.json.encode(msgspec.structs.replace(owner, **changes)))
    storage.put_new("claims/000000.1", name.encode())


def test_a_unit_is_claimed_once(storage: Storage) -> None:
    """Of two harvests, exactly one gets a unit, however often both ask."""
    with Claims(storage) as one, Claims(storage) as other:
        assert one.take(0) and not other.take(0) and not one.take(0)
        assert other.take(1) and not one.take(1)
        assert other.free(range(4)) == [2, 3]


def test_what_a_harvest_that_left_had_claimed_is_free(storage: Storage) -> None:
    """A harvest that ends, by Ctrl-C too, takes its file along: the next need not wait for the lease."""
    with Claims(storage) as one:
        assert one.take(0)
    with Claims(storage) as other:
        assert other.take(0)


def test_a_harvest_without_heartbeat_is_dead_after_its_lease(storage: Storage) -> None:
    """The lease is measured by the observer's clock, from the last change of the owner's counter."""
    put_owner(storage, "abc")
    now = 100.0
    with Claims(storage, clock=lambda: now) as other:
        assert not other.take(0)
        now += 59
        put_owner(storage, "abc", beat=2)
        assert not other.take(0)
        now += 59
        assert not other.take(0)
        now += 2
        assert other.take(0)


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(storage: Storage) -> None:
    """After kill -9 and a restart nothing has to be waited for; another process with the same id is not taken for it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    put_owner(storage, "abc", machine=this_machine(), pid=gone.pid, lease_s=3600.0)
    with Claims(storage) as other:
        assert other.take(0)
    put_owner(storage, "def", machine=this_machine(), pid=1, started="another", lease_s=3600.0)
    storage.put_new("claims/000005.1", b"def")
    with Claims(storage) as other:
        assert other.take(5)


def test_the_heartbeat_goes_on_while_a_harvest_works(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with Claims(storage, lease_s=0.1) as one:
        first = storage.get(f"owners/{one.name}.json")
        until(lambda: storage.get(f"owners/{one.name}.json") != first)


def test_when_all_is_done_nothing_is_left(storage: Storage) -> None:
    with Claims(storage) as one:
        one.take(0)
        one.clear()
        assert storage.names("claims") == []
    assert storage.names("owners") == []


def test_a_machine_is_identified_by_its_boot_and_its_processes() -> None:
    """Another process on it gives the same name, and /proc tells a process that runs from one that does not."""
    code = "from actscope.harvest.claims import this_machine; print(this_machine())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == this_machine() and boot_id() in this_machine()
    assert claims_module._started(1) and not claims_module._started(1 << 30)
