"""Every reader of files and messages, given changed copies of what the project's own writers made.

It either reads them or refuses them with an error of actscope, within bounds of memory and time. A fixed seed, and about 30 s of
one core; ACTSCOPE_FUZZ multiplies the number of inputs (ACTSCOPE_FUZZ=100 for a night).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FACTOR = os.environ.get("ACTSCOPE_FUZZ", "1")
TESTS = Path(__file__).parents[1]
#: Most that reading small files and messages may add to the memory of a process, and CPU seconds that one of them may take.
MOST_ADDED_MB, MOST_S = 256.0, 2.0


@pytest.mark.parametrize("group", ["recordings", "probes", "messages", "models"])
def test_changed_inputs_are_read_or_refused_by_an_own_error(group: str) -> None:
    outcomes = _run(group)
    assert len(outcomes) > 10
    foreign = {outcome["name"]: outcome["foreign"] for outcome in outcomes if outcome["foreign"]}
    assert foreign == {}, json.dumps(foreign, indent=1)
    added = outcomes[-1]["rss_mb"] - outcomes[0]["rss_mb"]
    assert added < MOST_ADDED_MB, {outcome["name"]: outcome["rss_mb"] for outcome in outcomes}
    slow = {outcome["name"]: outcome["slowest_s"] for outcome in outcomes if outcome["slowest_s"] > MOST_S}
    assert slow == {}
    untouched = [
        outcome["name"] for outcome in outcomes if not outcome["refused"] and "watermark" not in outcome["name"]
    ]
    assert [name for name in untouched if name != "options of a vLLM request"] == [], (
        "the changes do not reach these readers"
    )


def _run(group: str) -> list[dict[str, Any]]:
    env = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.attacks.fuzzing", group, FACTOR]
    limit_s = max(600.0, 60 * float(FACTOR))
    done = subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True, check=False, timeout=limit_s)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
