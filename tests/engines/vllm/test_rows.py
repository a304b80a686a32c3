"""Every row and every score of real vLLM, against transformers on the same weights and ids; see `mixed.drive` for the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines.vllm.conftest import ALL
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.models import LAYERS
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import write_probes

from actscope.frames import RowFlag

PROBES = mixed.draw_probes()
CHOSEN = ("llama v1 compiled", "llama v2 eager", "gemma2 v1 compiled", "gpt2 v2 eager")
WAYS: dict[str, tuple[str, Any]] = {
    f"{name} {way}": (name, {"runner": way.split()[0], "compile": way.split()[1]})
    for name in ("llama", "qwen3", "gemma2", "gpt2")
    for way in ("v1 eager", "v1 compiled", "v2 eager")
    if ALL or way == "v1 eager" or f"{name} {way}" in CHOSEN
}

#: Where as many requests as that have the same prompt at once; each way to run has it for one model at least.
SIXTY_FOUR = {way for way in WAYS if way.startswith("llama") or way.endswith("v1 eager")}


def recording_all(directory: Path) -> dict[str, str]:
    """The environment that records every row of every site, with probes at many of them."""
    return {
        "ACTSCOPE_RECORD": str(directory / "record"),
        "ACTSCOPE_ROW_SITES": mixed.SITES,
        "ACTSCOPE_SAMPLE": "1",
        "ACTSCOPE_PROBES": str(write_probes(directory / "probes", PROBES)),
    }


@pytest.fixture(scope="module", params=WAYS)
def ran(request: pytest.FixtureRequest, model: Callable[[str], Path], engines: Engines) -> Iterator[mixed.Ran]:
    """The mixed run of one configuration."""
    name, way = WAYS[request.param]
    directory = short_directory()
    variables = {"VLLM_USE_AOT_COMPILE": "0", **recording_all(directory)}  # what it saves cannot be loaded on a CPU
    engine = engines.start(Offline, Configuration(model(name), **way, arguments=mixed.CROWDED, environment=variables))
    copies = 64 if request.param in SIXTY_FOUR else 16
    yield mixed.run(engine, PROBES, directory / "record", lambda driver: mixed.drive(driver, copies=copies))
    engines.end()


def test_every_position_of_every_text_is_there(ran: mixed.Ran) -> None:
    """Once each, with the text's token: computed or from the cache; what preemption made vLLM compute again comes besides."""
    mixed.check_labels(ran)


def test_the_run_had_in_it_what_it_is_for(ran: mixed.Ran) -> None:
    """Chunks, prefix hits, preemptions and aborts really happened."""
    rows = {key: seen.rows for key, seen in ran.seen.items()}
    assert len(set(rows["long", 0]["step"][:300].tolist())) >= 5
    assert ran.seen["long-again", 0].having(RowFlag.CACHED).sum() == 288
    assert ran.seen["ragged-70-again", 0].having(RowFlag.CACHED).sum() == 64
    assert sum(seen.having(RowFlag.RECOMPUTED).any() for seen in ran.seen.values()) >= 2
    assert not ran.texts["aborted", 0].finished and ("aborted-in-prefill", 0) not in ran.texts


def test_the_account_is_exact(ran: mixed.Ran) -> None:
    """Every tap fired once in every pass, and every row that was counted was seen."""
    mixed.check_counts(ran)


def test_the_text_is_that_of_the_reference(ran: mixed.Ran) -> None:
    """Greedy tokens, whatever happened to the request on its way."""
    mixed.check_tokens(ran)


def test_every_score_is_right(ran: mixed.Ran) -> None:
    """Every activation, and every kind of place, for each request and position, those from the prefix cache too."""
    assert mixed.check_scores(ran, PROBES) > 30_000


def test_every_recorded_row_is_right(ran: mixed.Ran) -> None:
    """Embedding, what goes into blocks, what attention and MLP add, the stream behind, the last norm; recomputed rows too."""
    assert ran.recording is not None and len(ran.recording.sites) == 4 * LAYERS + 2
    assert mixed.check_recording(ran) > 20_000


@pytest.mark.parametrize("ran", ["llama v1 eager", *(["llama v1 compiled"] if ALL else [])], indirect=True)
def test_the_text_is_that_of_vllm_without_the_plugin(
    ran: mixed.Ran, request: pytest.FixtureRequest, model: Callable[[str], Path], engines: Engines
) -> None:
    """The same run with ACTSCOPE_DISABLE=1, token for token, samples of a temperature too."""
    name, way = WAYS[request.node.callspec.params["ran"]]
    off = {"ACTSCOPE_DISABLE": "1"}
    engine = engines.start(Offline, Configuration(model(name), **way, arguments=mixed.CROWDED, environment=off))
    driver = mixed.Driver(engine)
    mixed.drive(driver)
    ours = {key: text.answer for key, text in ran.texts.items() if key[0] != "last"}
    assert {key: text.answer for key, text in driver.texts.items()} == ours
