"""Runs under the shim: fails, shortens or tears every write and sync of a small recording, one at a time, and checks
what is left.

`python -m store.faulty DIRECTORY MODE ERROR DIRECT`: prints how many calls were tried; any broken promise is an uncaught error.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.store.parts import CHANNELS, files, put, readable

from actscope.errors import RecordingDamaged, RecordingError, RecordingPoisoned
from actscope.store import Store, StoreOptions, StoreReader, recover

SHIM = ctypes.CDLL(None)
FAIL, SHORT, TEAR = 0, 1, 2
COUNT = 60
MOST = 900


class Promises:
    """What a store said is safe, also when it failed later."""

    def __init__(self) -> None:
        self.written = self.durable = 0
        self.poisoned = False

    def note(self, store: Store) -> None:
        """Take down what it says now."""
        durable, written = store.durable, store.written
        self.written, self.durable = max(self.written, written), max(self.durable, durable)
        assert durable <= store.written


def work(path: Path, options: StoreOptions, promises: Promises) -> None:
    """Create, append, wait, sync, rotate, close; RecordingError where the shim strikes."""
    with Store.create(path, manifest={"a": 1}, channels=CHANNELS, options=options) as store:
        try:
            for number in range(1, COUNT + 1):
                put(store, number, MOST)
                if number % 20 == 0:
                    assert store.sync(10) == number and store.durable >= number
                elif number % 7 == 0:
                    store.wait_written(number, 10)
                promises.note(store)
        except RecordingPoisoned:
            promises.poisoned = True
            after_poison(store)
            raise
        finally:
            promises.note(store)
    promises.note(store)


def after_poison(store: Store) -> None:
    """Nothing more is accepted, what was acknowledged still counts."""
    written = store.written
    store.wait_written(written, 1)
    attempts: tuple[Callable[[], object], ...] = (lambda: put(store, COUNT + 1), lambda: store.sync(1))
    for attempt in attempts:
        try:
            attempt()
        except RecordingPoisoned as error:
            assert str(written) in str(error)
        else:
            raise AssertionError("a poisoned store accepted something")
    assert store.poisoned is not None and store.written == written


def strike(path: Path, nth: int, mode: int, error: int, options: StoreOptions) -> bool:
    """One recording with the Nth call struck; False when there is no Nth call."""
    promises = Promises()
    SHIM.shim_arm(nth, mode, error)
    try:
        work(path, options, promises)
        failed = False
    except RecordingError:
        failed = True
    SHIM.shim_disarm()
    if not SHIM.shim_fired():
        assert not failed
        return False
    assert failed == (mode != SHORT) or nth_was_harmless(path)
    if promises.written or (path / "manifest.json").exists():
        judge(path, promises)
    return True


def nth_was_harmless(path: Path) -> bool:
    """A failure that no promise hangs on: the probe of O_DIRECT."""
    return not StoreReader.open(path).verify()


def judge(path: Path, promises: Promises) -> None:
    """Every promise is kept, before and after recovery, and the recording can be gone on with."""
    before = readable(StoreReader.open(path), MOST)
    assert before >= set(range(1, max(promises.written, promises.durable) + 1))
    recover(path)
    reader = StoreReader.open(path)
    assert readable(reader, MOST) == before and not reader.verify()
    assert not recover(path).changed
    with Store.resume(path) as store:
        put(store, max(before, default=0) + 1, MOST)
    assert not StoreReader.open(path).verify()


def strike_recovery(path: Path, whole: Path, nth: int, error: int, salvage: bool) -> bool:
    """A recovery that is cut off at its Nth call is done by the next one; False when there is no Nth call."""
    shutil.copytree(whole, path)
    before = readable(StoreReader.open(path), MOST)
    SHIM.shim_arm(nth, TEAR, error)
    try:
        recover(path, salvage=salvage)
    except RecordingDamaged:
        raise
    except RecordingError:
        pass
    SHIM.shim_disarm()
    assert readable(StoreReader.open(path), MOST) == before, f"call {nth} of recover() took messages"
    recover(path, salvage=salvage)
    reader = StoreReader.open(path)
    assert readable(reader, MOST) == before and all(one.kind == "lost" for one in reader.verify())
    at_rest = files(path)
    assert not recover(path).changed and files(path) == at_rest
    return bool(SHIM.shim_fired())


def crashed(path: Path, options: StoreOptions, damaged: bool) -> Path:
    """A recording to be recovered: torn at the end, and with rot in the middle when it is to be salvaged."""
    store = Store.create(path, manifest={}, channels=CHANNELS, options=options)
    for number in range(1, COUNT + 1):
        put(store, number, MOST)
    store.wait_written(COUNT)
    copy = Path(shutil.copytree(path, path.with_name("crashed")))
    store.close()
    last = max(copy.glob("segment-*"))
    with last.open("ab") as file:
        file.write(b"torn")
    if damaged:
        entry = StoreReader.open(copy).entries[20]
        with (copy / f"segment-{int(entry['segment']):06d}.mcap").open("r+b") as file:
            file.seek(int(entry["offset"]) + 5)
            file.write(b"rot")
    return copy


def main() -> None:
    """Strike call 1, 2, 3 ... until there is none left to strike."""
    directory, mode, error = Path(sys.argv[1]), sys.argv[2], getattr(errno, sys.argv[3])
    step = int(sys.argv[5])
    direct: Any = sys.argv[4]
    options = StoreOptions(direct=direct, segment_bytes=1 << 14, buffer_bytes=1 << 14, commit_seconds=60)
    whole = crashed(directory / "whole", options, mode == "salvage") if mode in ("recover", "salvage") else directory
    nth, more = 1, True
    while more:
        path = directory / "struck"
        if mode in ("recover", "salvage"):
            more = strike_recovery(path, whole, nth, error, mode == "salvage")
        else:
            more = strike(path, nth, {"fail": FAIL, "short": SHORT, "tear": TEAR}[mode], error, options)
        shutil.rmtree(path, ignore_errors=True)
        nth += step
    print(nth - step)


if __name__ == "__main__":
    main()
