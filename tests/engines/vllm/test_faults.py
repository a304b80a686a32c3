"""Taps that fail, recorders that die or have no room: generation goes on with the same tokens, and every loss is counted."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.vllm.test_rows import PROBES, recording_all
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.changing_hooks.changing_hooks import ADDED, AFTER, BEFORE
from support.vllm.mixed import draw_probes
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, Ring, card, cards, external, recording_of
from support.waiting import can_unshare, until

from actscope.engines.vllm.sidecar_protocol import external_id
from actscope.recording.reading.recording import Recording

INSIDE = "support.vllm.inside:"
EARLY, LATE = mixed.STREAM[0], mixed.STREAM[2]
PROMPTS = [mixed.prompt(n, 40) for n in range(8)]


@pytest.fixture
def directory() -> Iterator[Path]:
    found = short_directory()
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def begin(model: Callable[[str], Path], engines: Engines, directory: Path) -> Iterator[Callable[..., Offline]]:
    """`begin(ACTSCOPE_X="...")`: an engine that records all, ready, without a prefix cache."""

    def start(**environment: str) -> Offline:
        variables = recording_all(directory) | environment
        arguments = {"max_num_batched_tokens": 64, "enable_prefix_caching": False}
        engine = engines.start(Offline, Configuration(model("llama"), environment=variables, arguments=arguments))
        assert Control(card(engine)).put_probe(PROBES[0])[0] == 200
        return engine

    yield start
    engines.end()


def answers(engine: Offline, stem: str) -> list[tuple[int, ...]]:
    """The greedy tokens of the eight prompts; 47 rows each."""
    ids = [f"{stem}-{n}" for n in range(len(PROMPTS))]
    return [one.token_ids for one in engine.generate(PROMPTS, ids=ids)]


ROWS = len(PROMPTS) * (40 + 8 - 1)


def recorded(recording: Recording) -> Counter[str]:
    """Rows by external id, whatever the recording calls the request."""
    found: Counter[str] = Counter()
    for request in recording.requests:
        found[external_id(request)] += len(recording.labels(request))
    return found


def test_what_a_tap_did_not_compute_is_not_delivered(begin: Callable[..., Offline], directory: Path) -> None:
    """A hook that is gone and an op that fails: NaN in their columns only, counted, logged once, the text unchanged."""
    engine = begin()
    ring = Ring(card(engine))
    columns = {id: shown["slot"] for id, shown in Control(card(engine)).table().items()}
    before = answers(engine, "before")
    engine.call(INSIDE + "silence", site=LATE)
    silent = answers(engine, "silent")
    engine.call(INSIDE + "break_tap", site=EARLY)
    broken = answers(engine, "broken")
    assert before == silent == broken
    seen = {external(request)[0]: one for request, one in ring.read().items()}
    ring.close()
    counts = engine.call(INSIDE + "counts")
    engine.close()
    for probe in PROBES:
        for stem, gone in (("before", []), ("silent", [LATE]), ("broken", [LATE, EARLY])):
            scores = np.concatenate([seen[f"{stem}-{n}"].scores[:, columns[probe.id]] for n in range(len(PROMPTS))])
            assert np.isnan(scores).all() if probe.info.site in gone else not np.isnan(scores).any(), (probe.id, stem)
    assert counts["rows"] == 3 * ROWS == counts["raw_rows"] + counts["raw_dropped_rows"]
    assert counts["raw_rows"] == ROWS == sum(recorded(recording_of(directory / "record")).values())
    passes = counts["passes"] * 2 // 3
    assert counts["tap_faults"] == passes + passes // 2
    assert engine.log.count(f"the tap at {LATE} ran 0 times") == 1
    assert engine.log.count(f"the tap at {EARLY} ran 0 times") == 1


def accounted(state: dict[str, Any]) -> int:
    """Rows that were given to the recording, and those known to be missed. Held rows are given too (`ACTSCOPE_SAMPLE=1`)."""
    return int(state["kept"]["rows"] + state["missed_rows"] + state["unsent_rows"])


def test_a_recorder_that_stands_still_costs_rows_and_no_time(begin: Callable[..., Offline], directory: Path) -> None:
    """The ring of raw rows is overwritten unread; what is recorded and what was missed are all rows."""
    engine = begin(ACTSCOPE_BUFFER_GB="0.0012")
    control = Control(card(engine))
    before = answers(engine, "before")
    until(lambda: accounted(control.recording()) >= ROWS, 60, what="rows in the recorder, or counted as missed")
    pid = engine.call(INSIDE + "sidecar")
    os.kill(pid, signal.SIGSTOP)
    during = answers(engine, "during")
    os.kill(pid, signal.SIGCONT)
    after = answers(engine, "after")
    counts = engine.call(INSIDE + "counts")
    until(
        lambda: accounted(control.recording()) >= 3 * ROWS, 60, what="every row in the recorder, or counted as missed"
    )
    ring = engine.call(INSIDE + "rows_ring")
    state = control.recording()
    engine.close()
    assert before == during == after
    assert counts["raw_rows"] == 3 * ROWS
    found = recorded(recording_of(directory / "record"))
    missed, unsent = state["missed_rows"], state["unsent_rows"]
    assert 0 < missed < 3 * ROWS
    assert sum(found.values()) + missed + unsent == 3 * ROWS and unsent == ring["dropped_rows"]
    assert engine.log.count("were overwritten unread") == 1


def test_a_recorder_that_is_killed_is_started_again(begin: Callable[..., Offline], directory: Path) -> None:
    """It goes on with the probes that were there, in the same directory, where the other stopped: no row is there twice."""
    engine = begin()
    old = card(engine)
    ring = Ring(old)
    added = draw_probes(seed=8)[0].renamed("added")
    assert Control(old).put_probe(added)[0] == 200
    before = answers(engine, "before")
    pid = engine.call(INSIDE + "sidecar")
    os.kill(pid, signal.SIGKILL)
    during = answers(engine, "during")
    until(lambda: engine.call(INSIDE + "sidecar") != pid, 60, what="another sidecar")
    found = until(lambda: [one for one in cards(engine) if _answers(Control(one))], 60, what="its card")[0]
    assert (found.id, found.ring) == (old.id, old.ring)
    assert set(Control(found).table()) == {probe.id for probe in [*PROBES, added]}
    assert Control(found).put_probe(added)[0] == 200
    after = answers(engine, "after")
    counts = engine.call(INSIDE + "counts")
    generations = np.concatenate([seen.rows["generation"] for seen in ring.read().values()])
    ring.close()
    engine.close()
    assert before == during == after
    assert counts["deaths"] == 1 and counts["raw_rows"] == 3 * ROWS and counts["faults"] == 0
    assert (np.diff(generations) >= 0).all() and generations[-1] > generations[0]
    rows = recorded(recording_of(directory / "record"))
    whole = {f"{stem}-{n}": ROWS // len(PROMPTS) for stem in ("during", "after") for n in range(len(PROMPTS))}
    assert {id: n for id, n in rows.items() if not id.startswith("before")} == whole
    assert all(n <= 47 for n in rows.values()), "the dead one may have taken rows with it, but none comes twice"
    assert engine.log.count("has ended; it is started again") == 1


def _answers(control: Control) -> bool:
    try:
        return control.ask("GET", "/health")[0] == 200
    except OSError:
        return False


def test_a_full_disk_ends_the_recording_and_nothing_else(begin: Callable[..., Offline], directory: Path) -> None:
    """Scores and text go on; the recording says that it has failed, the log says it once, and what was kept can be read."""
    engine = begin()
    found = card(engine)
    ring = Ring(found)
    before = answers(engine, "before")
    pid = engine.call(INSIDE + "sidecar")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
    during = answers(engine, "during")
    until(
        lambda: answers(engine, "more") == before and Control(found).recording()["failure"],
        60,
        what="the recording's failure",
    )
    after = answers(engine, "after")
    counts = engine.call(INSIDE + "counts")
    seen = ring.read()
    ring.close()
    engine.close()
    assert before == during == after
    assert counts["faults"] == counts["deaths"] == 0
    assert sum(len(one.rows) for one in seen.values()) == counts["rows"]
    assert engine.log.count("Traceback") == 0
    Recording.open(directory / "record")


def test_a_change_by_another_plugin_is_in_the_row_whatever_was_loaded_first(
    model: Callable[[str], Path], engines: Engines, directory: Path
) -> None:
    """What leaves a block is what enters the next one, with hooks that were registered before ours and after it."""
    sites = {"ACTSCOPE_ROW_SITES": "0,1,2,layers.1.resid_pre,layers.2.resid_pre,layers.3.resid_pre"}
    engine = engines.start(
        Offline, Configuration(model("llama"), changing_hooks=True, environment=recording_all(directory) | sites)
    )
    assert card(engine), "the sidecar is there, and with it the recording"
    answers(engine, "changed")
    engine.close()
    engines.end()
    recording = recording_of(directory / "record")
    for layer in (BEFORE, AFTER, 2):
        leaving = recording.rows(f"layers.{layer}.resid_post", request="changed-0").values
        entering = recording.rows(f"layers.{layer + 1}.resid_pre", request="changed-0").values
        assert len(leaving) == 47 and np.abs(leaving - entering).max() < ADDED / 1000, layer


@pytest.mark.skipif(not can_unshare("--mount"), reason="a /dev/shm of its own needs root and mount namespaces")
@pytest.mark.parametrize("mb", [64, 16])
def test_vllm_serves_with_little_shared_memory(
    mb: int, model: Callable[[str], Path], engines: Engines, directory: Path
) -> None:
    """With the /dev/shm of a container our parts take what fits, and say with numbers what does not."""
    arguments = {"max_num_batched_tokens": 4096, "max_model_len": 512, "enable_prefix_caching": False}
    environment = recording_all(directory) | {"ACTSCOPE_ROW_SITES": "all", "SMALL_SHM_MB": str(mb)}
    engine = engines.start(SmallShm, Configuration(model("llama"), arguments=arguments, environment=environment))
    found = answers(engine, "small")
    state = Control(card(engine)).recording()
    counts = engine.call(INSIDE + "counts")
    log = engine.log
    engine.close()
    engines.end()
    assert len(found) == len(PROMPTS) and counts["faults"] == counts["deaths"] == 0
    assert counts["rows"] == ROWS
    if state["recording"]:
        assert sum(recorded(recording_of(directory / "record")).values()) == ROWS
    else:
        assert "GB are needed" in state["failure"] and "GB are needed" in log
    assert (mb == 64) == ("ring_rows" not in log)


class SmallShm(Offline):
    """An engine in a mount namespace of its own, with a /dev/shm of SMALL_SHM_MB."""

    def command(self) -> list[str]:
        mount = 'mount -t tmpfs -o size="${SMALL_SHM_MB}m" tmpfs /dev/shm && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mount, "sh", *super().command()]
