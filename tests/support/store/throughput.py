"""How fast the store writes, against a raw sequential O_DIRECT write of the same bytes with the same buffer: `python
tests/support/store/throughput.py DIR`.

Both sides include the final fdatasync; pairs alternate in order, so that a drift of the disk hits both. Prints the
ratio of each pair.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from actscope.store import KEY_BYTES, Store, StoreOptions
from actscope.store.writing.buffers import LARGEST, aligned_memory

BODY = 1 << 20
MESSAGES = 2048
PAIRS = 5


def raw(directory: Path, size: int) -> float:
    """Bytes per second of the disk itself."""
    path = directory / "raw"
    memory = aligned_memory(LARGEST)  # on huge pages too: the strongest baseline
    memory[:] = os.urandom(LARGEST)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    began = time.perf_counter()
    for offset in range(0, size, LARGEST):
        assert os.pwrite(fd, memory, offset) == LARGEST
    os.fdatasync(fd)
    seconds = time.perf_counter() - began
    os.close(fd)
    path.unlink()
    return size / seconds


def ours(directory: Path, size: int) -> float:
    """Bytes of bodies per second through the store, from the first append until all is durable."""
    path = directory / "store"
    bodies: list[Any] = [np.frombuffer(os.urandom(BODY), np.uint8) for _ in range(8)]
    with Store.create(path, manifest={}, channels=["rows"], options=StoreOptions()) as store:
        began = time.perf_counter()
        for index in range(size // BODY):
            store.append("rows", bytes(KEY_BYTES), [memoryview(bodies[index % 8])], index)
        store.sync()
        seconds = time.perf_counter() - began
        print(f"  direct={store.direct} {store.stats()}")
    shutil.rmtree(path)
    return size / seconds


def main() -> None:
    """Print each pair, then median and spread of the ratios."""
    directory, size, ratios = Path(sys.argv[1]), BODY * MESSAGES, []
    for pair in range(PAIRS):
        if pair % 2:
            base, mine = raw(directory, size), ours(directory, size)
        else:
            mine, base = ours(directory, size), raw(directory, size)
        ratios.append(mine / base)
        print(f"store {mine / 1e9:.2f} GB/s, raw {base / 1e9:.2f} GB/s, ratio {mine / base:.3f}")
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} .. {max(ratios):.3f}")


if __name__ == "__main__":
    main()
