"""What is compiled anew and what is not; and probes that come, change and go while requests run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.models import WIDTH
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, Ring, Seen, card, external, write_probes

from actscope.frames import RowFlag
from actscope.probes import Probe, ProbeInfo

INSIDE = "support.vllm.inside:"
SITES = "0,2,3"


def identity(id: str, layer: int, seed: int) -> Probe:
    weight = (np.random.default_rng(seed).standard_normal(WIDTH) * 0.05).astype(np.float32)
    return Probe(ProbeInfo(id=id, site=f"layers.{layer}.resid_post", activation="identity"), weight)


@pytest.fixture(scope="module")
def start(model: Callable[[str], Path], engines: Engines, bed_directory: Path) -> Iterator[Callable[..., Offline]]:
    """`start(ACTSCOPE_X="...")`: a compiled engine without vLLM's AOT cache, which cannot be loaded on a CPU."""

    def one(**environment: str) -> Offline:
        variables = {"ACTSCOPE_SITES": SITES, "VLLM_USE_AOT_COMPILE": "0"} | environment
        found = engines.start(Offline, Configuration(model("llama"), compile="compiled", environment=variables))
        card(found)
        return found

    yield one
    engines.end()


@pytest.fixture(scope="module")
def warm(start: Callable[..., Offline]) -> Offline:
    """An engine whose graph an earlier engine has compiled; its ring and its probes are others."""
    first = start()
    assert first.call(INSIDE + "compiled")["graphs"] >= 1
    directory = short_directory()
    probes = write_probes(directory, [identity("loaded", 2, seed=1)])
    found = start(ACTSCOPE_RING_ROWS="4096", ACTSCOPE_PROBES=str(probes), ACTSCOPE_PREFIX_SCORES="true")
    shutil.rmtree(directory)
    return found


def test_ring_and_probes_do_not_compile_again(warm: Offline) -> None:
    """A second start with another ring and other probes finds every graph in Inductor's cache."""
    found = warm.call(INSIDE + "compiled")
    assert found["hits"] >= 1 and found["misses"] == 0


class Live:
    """An engine with requests running, its control socket and its ring."""

    def __init__(self, engine: Offline) -> None:
        self.engine = engine
        self.card = card(engine)
        self.control, self.ring = Control(self.card), Ring(self.card)

    def seen(self) -> dict[str, Seen]:
        return {external(request)[0]: one for request, one in self.ring.read().items()}

    def table(self, generation: int) -> dict[str, dict[str, Any]]:
        """The probe table that readers find for a generation: by id."""
        path = self.engine.runtime_directory / f"probes-{self.card.id}-{generation}.json"
        return {probe["id"]: probe for probe in msgspec.json.decode(path.read_bytes())["probes"]}


@pytest.fixture
def live(warm: Offline) -> Iterator[Live]:
    warm.reset()
    found = Live(warm)
    yield found
    for id in found.control.table():
        if id != "loaded":
            found.control.remove_probe(id)
    found.ring.close()


def test_probes_come_change_and_go_while_requests_run(live: Live, model: Callable[[str], Path]) -> None:
    """From the next pass on, each row is scored by the probe of its generation's table; nothing is compiled for it."""
    engine, control = live.engine, live.control
    before = engine.call(INSIDE + "compiled")
    words = mixed.prompt(11, 12)
    engine.add("runs", words, max_tokens=40)
    versions = {1: identity("mine", 3, seed=2), 2: identity("mine", 0, seed=3)}
    changes: list[Callable[[], tuple[int, object]]] = [
        lambda: control.put_probe(versions[1]),
        lambda: control.put_probe(versions[2]),
        lambda: control.remove_probe("mine"),
    ]
    engine.step(5)
    for change in changes:
        status, answer = change()
        assert status in (200, 204), answer
        engine.step(5)
    done = engine.drain()["runs"]
    seen = live.seen()["runs"]
    assert engine.call(INSIDE + "compiled") == before
    rows = mixed.truth(model("llama"), (*words, *done.token_ids))[0]
    generations = list(dict.fromkeys(seen.rows["generation"].tolist()))
    assert len(generations) == 4 and generations == sorted(generations)
    loaded = identity("loaded", 2, seed=1)
    for number, generation in enumerate(generations):
        at = seen.rows["generation"] == generation
        probes = [loaded] + ([versions[number]] if number in versions else [])
        table = live.table(generation)
        assert set(table) == {probe.id for probe in probes}
        for probe in probes:
            right = rows[probe.info.site][seen.rows["position"][at]] @ probe.weight
            np.testing.assert_allclose(seen.scores[at, int(table[probe.id]["slot"])], right, rtol=1e-3, atol=1e-3)
        empty = sorted(set(range(64)) - {int(probe["slot"]) for probe in table.values()})
        assert np.isnan(seen.scores[at][:, empty]).all()


def test_cached_scores_are_of_the_probe_that_is_there_now(live: Live) -> None:
    """What was scored before a probe came, or by the one whose column it took, is NaN for it; the others' scores are found."""
    engine, control = live.engine, live.control
    words = mixed.prompt(12, 70)
    assert control.put_probe(identity("swapped", 3, seed=4))[0] == 200
    engine.add("first", words)
    engine.drain()
    assert control.put_probe(identity("swapped", 3, seed=5))[0] == 200
    engine.add("second", words, max_tokens=8)
    engine.drain()
    seen = live.seen()
    table = control.table()
    cached = seen["second"].having(RowFlag.CACHED)
    assert cached.sum() == 64
    swapped, loaded = table["swapped"]["slot"], table["loaded"]["slot"]
    assert np.isnan(seen["second"].scores[cached, swapped]).all()
    assert not np.isnan(seen["second"].scores[~cached, swapped]).any()
    np.testing.assert_array_equal(seen["second"].scores[cached, loaded], seen["first"].scores[:64, loaded])


def test_a_full_bank_and_an_untapped_site_are_said_clearly(live: Live) -> None:
    """The 65th probe and a probe at layer 1, which is not tapped, are refused with what to do; the table stays."""
    control = live.control
    status, answer = control.put_probe(identity("elsewhere", 1, seed=6))
    message = answer["error"]["message"]
    assert status == 400 and "layers.1.resid_post" in message and "ACTSCOPE_SITES" in message
    for n in range(63):
        assert control.put_probe(identity(f"p{n}", n % 2 * 2, seed=n))[0] == 200
    status, answer = control.put_probe(identity("one-too-many", 0, seed=7))
    assert status == 400 and "all 64 columns are taken" in answer["error"]["message"]
    assert len(control.table()) == 64
    live.engine.add("all", mixed.prompt(13, 10), max_tokens=3)
    live.engine.drain()
    assert not np.isnan(live.seen()["all"].scores).any()


def test_other_sites_are_another_graph(start: Callable[..., Offline]) -> None:
    """Taps are part of the compiled graph, and of the key that it is kept under."""
    engine = start(ACTSCOPE_SITES="1")
    assert engine.call(INSIDE + "compiled")["misses"] >= 1
