"""Claims: who works on which unit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from actscope.harvest import claims as claims_module
from actscope.harvest.claims import Claims, Owner, this_machine
from actscope.harvest.storage import Storage, open_storage


@pytest.fixture
def storage(place: str) -> Storage:
    return open_storage(place)


def put_owner(storage: Storage, name: str, **changes: object) -> None:
    """An owner's file as a harvest elsewhere would write it."""
    owner = Owner(name=name, machine="elsewhere", pid=1, started="1", beat=1, lease_s=0.2)
    storage.put(f"owners/{name}.json", msgspec.json.encode(msgspec.structs.replace(owner, **changes)))
    storage.put_new("claims/000000.1", name.encode())


def test_a_unit_is_claimed_once(storage: Storage) -> None:
    """Of two harvests at work, one has a unit and the other does not, whoever asks how often."""
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


def test_a_harvest_whose_heart_stands_still_is_dead_after_its_lease(storage: Storage) -> None:
    """By the observer's own clock, and only if the counter did not move meanwhile."""
    put_owner(storage, "abc")
    with Claims(storage) as other:
        assert not other.take(0)
        time.sleep(0.15)
        put_owner(storage, "abc", beat=2)
        assert not other.take(0)
        time.sleep(0.15)
        assert not other.take(0)
        time.sleep(0.1)
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


def test_the_heart_beats_while_a_harvest_works(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with Claims(storage, lease_s=0.1) as one:
        first = storage.get(f"owners/{one.name}.json")
        time.sleep(0.2)
        assert storage.get(f"owners/{one.name}.json") != first


def test_when_all_is_done_nothing_is_left(storage: Storage) -> None:
    with Claims(storage) as one:
        one.take(0)
        one.clear()
        assert storage.names("claims") == []
    assert storage.names("owners") == []


def test_a_machine_is_told_from_another_by_its_boot_and_its_processes() -> None:
    """The same here and now, and what /proc says of a process that is there and of one that is not."""
    assert this_machine() == this_machine()
    assert claims_module._started(1) and not claims_module._started(1 << 30)
