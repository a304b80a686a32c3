"""Parts of a real machine for tests of the collectors: programs in the kernel, loop devices, writers."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from actscope.metrics.sources.diskstats import COUNT, OPERATIONS, DeviceCounts, read_diskstats
from actscope.metrics.sources.kernel import why_no_programs

_BLOCK = 4096


def need_programs() -> None:
    """Skip where programs cannot be loaded into the kernel, and say why."""
    reason = why_no_programs("pytest", needs_pids=True)
    if reason:
        pytest.skip(f"programs in the kernel: {reason}")


@dataclass(frozen=True)
class LoopDevice:
    """A loop device on a file of its own."""

    path: Path
    file: Path

    @property
    def name(self) -> str:
        return self.path.name

    def counts(self) -> DeviceCounts:
        """The kernel's own counts."""
        return read_diskstats()[self.name]


@contextmanager
def loop_device(directory: Path, megabytes: int = 32) -> Iterator[LoopDevice]:
    """Make a loop device; skip where that is not possible."""
    if shutil.which("losetup") is None or os.geteuid() != 0:
        pytest.skip("needs losetup and root")
    file = directory / "disk"
    with file.open("wb") as made:
        os.posix_fallocate(made.fileno(), 0, megabytes << 20)
    made_ = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True)
    if made_.returncode:
        pytest.skip(f"no loop device here: {made_.stderr.strip()}")
    try:
        yield LoopDevice(Path(made_.stdout.strip()), file)
    finally:
        subprocess.run(["losetup", "--detach", made_.stdout.strip()], check=True)


class DirectFile:
    """A device opened past the page cache: each call is one request or more, and waits for it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._buffer = mmap.mmap(-1, 256 * _BLOCK)

    def write(self, block: int, blocks: int = 1) -> None:
        os.pwritev(self._fd, [memoryview(self._buffer)[: blocks * _BLOCK]], block * _BLOCK)

    def read(self, block: int, blocks: int = 1) -> None:
        os.preadv(self._fd, [memoryview(self._buffer)[: blocks * _BLOCK]], block * _BLOCK)

    def flush(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def by_operation(counts: DeviceCounts) -> dict[str, int]:
    """Return the number of requests of each kind that has some."""
    return {name: int(row[COUNT]) for name, row in zip(OPERATIONS, counts.operations, strict=True) if row[COUNT]}
