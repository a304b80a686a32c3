"""Each counter of vLLM moves when its fault is provoked, and is read from outside: also of processes that hang or are dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines.vllm.test_rows import PROBES, recording_all
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, card
from support.waiting import until

from actscope.counters import Counter, summed
from actscope.ring.counter_files import read_reports

INSIDE = "support.vllm.inside:"
PROMPTS = [mixed.prompt(n, 40) for n in range(8)]
ROWS = len(PROMPTS) * (40 + 8 - 1)
LATE = mixed.STREAM[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    found = short_directory()
    yield found
    shutil.rmtree(found, ignore_errors=True)


def test_each_fault_moves_its_counter(
    model: Callable[[str], Path], engines: Engines, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tap that is gone, a sidecar that stands still and one that is killed, a pass larger than a ring; one engine for all."""
    variables = recording_all(directory) | {"ACTSCOPE_BUFFER_GB": "0.0012"}
    arguments = {"max_num_batched_tokens": 64, "enable_prefix_caching": False}
    engine = engines.start(Offline, Configuration(model("llama"), environment=variables, arguments=arguments))
    found = card(engine)
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(engine.runtime_directory))
    assert Control(found).put_probe(PROBES[0])[0] == 200

    def shown(name: str) -> int:
        counters: dict[str, Counter] = {one.name: one for one in summed(read_reports(found.id))}
        return counters[name].value if name in counters else -1

    def generate(stem: str, **options: object) -> None:
        engine.generate(PROMPTS, ids=[f"{stem}-{n}" for n in range(len(PROMPTS))], **options)

    generate("before")
    until(lambda: shown("model_rows") == ROWS, 60, what="the rows in the counters")
    assert {name: shown(name) for name in ("model_tap_faults", "sidecar_deaths", "ring_dropped_rows")} == {
        "model_tap_faults": 0,
        "sidecar_deaths": 0,
        "ring_dropped_rows": 0,
    }
    # ids of every length have their rows
    generate("x" * 300)
    until(lambda: shown("model_rows") == 2 * ROWS, 60, what="the rows of the long ids")
    assert shown("model_uncertain_rows") == 0
    # the sidecar hangs: its rows are overwritten; the counters of the model are read all the same
    pid = engine.call(INSIDE + "sidecar")
    os.kill(pid, signal.SIGSTOP)
    generate("during")
    until(lambda: shown("model_rows") == 3 * ROWS, 60, what="the rows while the sidecar hangs")
    os.kill(pid, signal.SIGCONT)
    until(lambda: shown("drain_missed_rows") > 0, 60, what="raw rows that were overwritten")
    # the sidecar is killed
    os.kill(pid, signal.SIGKILL)
    until(lambda: shown("sidecar_deaths") == 1, 60, what="the sidecar's death")
    # a tap is gone
    engine.call(INSIDE + "silence", site=LATE)
    generate("silent")
    until(lambda: shown("model_tap_faults") > 0, 60, what="taps that did not run")
    until(lambda: shown("model_raw_dropped_rows") == ROWS, 60, what="raw rows that were not sent")
    doctor = subprocess.run(
        [sys.executable, "-m", "actscope", "doctor"], capture_output=True, text=True, timeout=120, check=False
    )
    assert doctor.returncode == 1
    for name in ("sidecar_deaths", "model_tap_faults", "model_raw_dropped_rows", "drain_missed_rows"):
        assert name == "drain_missed_rows" or f"NO   {name}" in doctor.stdout, doctor.stdout
        assert f"{name} = " in engine.log, name
    assert engine.log.count("sidecar_deaths = 1: ") == 1
    engine.close()
    assert read_reports(found.id) == []
