"""After kill -9 at any moment, every acknowledged row reads back bit for bit, and the capture goes on in the same recording."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from support.recordings.made import row_of, token_of
from support.recordings.writer_process import SITES

from actscope.recording.reading.recording import Recording
from actscope.store import StoreReader, recover

CYCLES = int(os.environ.get("ACTSCOPE_TEST_CYCLES", "8"))
TESTS = Path(__file__).parents[1]


def run_and_kill(path: Path, seed: int, after: float) -> dict[str, int]:
    """What one child had acknowledged when it was killed: request -> positions."""
    command = [sys.executable, "-m", "support.recordings.writer_process", str(path), "shuffle_zstd", str(seed), "0"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    killer = threading.Timer(after, child.send_signal, [signal.SIGKILL])
    killer.start()
    acknowledged: dict[str, int] = {}
    for line in child.stdout:
        if line.endswith("\n"):
            request, position = line.split()
            acknowledged[request] = int(position)
    killer.join()
    child.wait()
    child.stdout.close()
    return acknowledged


def check(path: Path, acknowledged: dict[str, int]) -> None:
    found = Recording.open(path)
    for request, n in acknowledged.items():
        for site in SITES:
            rows = found.rows(site, request, list(range(n)))
            assert rows.labels["token_id"].tolist() == [token_of(request, p) for p in range(n)]
            np.testing.assert_array_equal(rows.values, [row_of(request, p, site) for p in range(n)])


def test_acknowledged_rows_survive_kill_9_at_random_points(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "r.acts"
    acknowledged: dict[str, int] = {}
    for cycle in range(CYCLES):
        acknowledged |= run_and_kill(path, cycle, chance.uniform(0.02, 0.5))
        last = dict(list(acknowledged.items())[-1:])
        check(path, last)  # as it lies there, before anything is mended
        recover(path)
        check(path, acknowledged if cycle % 10 == 9 or cycle == CYCLES - 1 else last)
    assert acknowledged, "no child lived long enough to acknowledge anything"
    assert StoreReader.open(path).verify() == []
