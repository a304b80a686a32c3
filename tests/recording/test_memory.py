"""A capture that outruns its disk keeps within the memory that it was given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from actscope.bench.store import MEMORY


def test_peak_memory_stays_below_the_limit_when_the_disk_is_slow_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actscope.bench.store", "slow", str(tmp_path / "r.acts"), "16"]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"put {said['put_mb']:.0f} MiB, memory grew by {said['rss_mb']:.0f} MiB, waited {said['blocked_s']:.1f} s")
    assert said["put_mb"] > 2 * MEMORY / (1 << 20) - 1 and said["blocked_s"] > 1
    assert said["rss_mb"] < MEMORY / (1 << 20)
    assert said["lost_rows"] == 0
