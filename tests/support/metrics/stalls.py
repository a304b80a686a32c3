"""Ways to stall the thread of a real engine that computes, each for about half a second.

An engine that is started with `environment(directory)` stalls in its next pass when the file `stall` of that directory names a
way. Importing this module as `sitecustomize` puts the stall between the borders `begun` and `ended` of its passes.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

SECONDS = 0.6
_DIRECTORY = "ACTSCOPE_TEST_STALLS"


def environment(directory: Path) -> dict[str, str]:
    """What lets a Python process stall when it is asked to."""
    home = directory / "site"
    home.mkdir(parents=True)
    (home / "sitecustomize.py").write_text(Path(__file__).read_text() + "\n_install()\n")
    return {"PYTHONPATH": str(home), _DIRECTORY: str(directory)}


def ask_to_stall(directory: Path, way: str, device: Path | None = None) -> None:
    """Let the engine stall in its next pass."""
    temporary = directory / "asked"
    temporary.write_text(f"{way} {device or ''}")
    temporary.rename(directory / "stall")


def _install() -> None:
    if _DIRECTORY not in os.environ:
        return
    from actscope.engines.pass_clock import PassClock

    asked = Path(os.environ[_DIRECTORY]) / "stall"
    begun = PassClock.begun

    def stalling(clock: PassClock) -> None:
        begun(clock)
        try:
            way, _, device = asked.read_text().partition(" ")
            asked.unlink()
        except FileNotFoundError:
            return
        _WAYS[way](device.strip())

    PassClock.begun = stalling  # type: ignore[method-assign, assignment]


def _lock(device: str) -> None:
    """Wait for a lock that another thread holds."""
    lock, held = threading.Lock(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(SECONDS)

    threading.Thread(target=hold, name="holder").start()
    held.wait()
    with lock:
        pass


def _disk(device: str) -> None:
    """Write to a device past the page cache, each time until the device has it."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    buffer = mmap.mmap(-1, 4 << 20)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        os.pwrite(fd, buffer, 0)
    os.close(fd)


def _page_in(device: str) -> None:
    """Touch pages of a mapped device that are in no memory, each of which is read when it is touched."""
    fd = os.open(device, os.O_RDONLY)
    size = os.lseek(fd, 0, os.SEEK_END)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as pages:
            pages.madvise(mmap.MADV_RANDOM)
            for at in range(0, size, mmap.PAGESIZE):
                if not at % (64 * mmap.PAGESIZE) and time.monotonic() >= until:
                    break
                _ = pages[at]
    os.close(fd)


def _compute(device: str) -> None:
    """Compute until it had a tenth of the time on a processor: beside a neighbour that takes them, that lasts."""
    until = time.thread_time() + SECONDS / 10
    while time.thread_time() < until:
        pass


_WAYS = {"lock": _lock, "disk": _disk, "page-in": _page_in, "compute": _compute}
