"""Real vLLM in two pipeline stages: each has its card, ring, sites and recording, and the real gateway makes them one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engines.vllm.test_gateway import gateway
from engines.vllm.test_rows import PROBES, recording_all
from support.gateway.stage import Picture, Place, chat, chunks, picture
from support.vllm import mixed
from support.vllm.bed import Configuration, Served
from support.vllm.models import LAYERS, WIDTH, make_model
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, Ring, cards, external, recording_of
from support.waiting import until

from actscope.frames import RowFlag
from actscope.probes import Probe
from actscope.recording.reading.recording import Recording
from actscope.ring.discovery import EngineCard

#: Sites of the first and of the second stage: vLLM divides four blocks evenly.
HALVES = [
    ["embed", *(f"layers.{n}.{point}" for n in half for point in ("resid_pre", "attn_out", "mlp_out", "resid_post"))]
    for half in (range(LAYERS // 2), range(LAYERS // 2, LAYERS))
]
HALVES[1] = [*HALVES[1][1:], "final_norm"]
STARS = "Tell me about a fox in the snow"


def probes_of(part: int) -> list[Probe]:
    """Those whose sites this stage has."""
    return [probe for probe in PROBES if probe.info.site in HALVES[part]]


@dataclass
class Watched:
    """Two stages through one run: cards, what each gave out, refusals (status, code), and answers through the gateway."""

    cards: list[EngineCard]
    stages: list[mixed.Ran]
    refused: list[tuple[int, str]]
    joined: Picture
    swapped: Picture


class Client:
    """Sends texts to vLLM itself, many at once, and remembers what they came to."""

    def __init__(self, engine: Served) -> None:
        self._engine = engine
        self.texts: dict[tuple[str, int], mixed.Text] = {}

    def ask(self, id: str, ids: Sequence[int], **params: Any) -> None:
        """One completion to its end, greedy unless `params` say otherwise."""
        answer = self._engine.post("/v1/completions", self._body(ids, return_token_ids=True, **params), request_id=id)
        for choice in answer["choices"]:
            key = f"{answer['id']}-0", choice["index"]
            self.texts[key] = mixed.Text(list(ids), tuple(choice["token_ids"]))

    def leave(self, id: str, ids: Sequence[int]) -> None:
        """Begin a long completion, and hang up at its first token."""
        url, headers = f"{self._engine.url}/v1/completions", {"x-request-id": id}
        body = self._body(ids, stream=True, max_tokens=400)
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as response:
            next(response.iter_lines())

    def _body(self, ids: Sequence[int], **params: Any) -> dict[str, Any]:
        plain = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
        return {"model": self._engine.configuration.model.name, "prompt": list(ids), **plain, **params}


def drive(client: Client) -> None:
    """Prompts of many lengths at once, one that is left, prompts from the cache, and more than the KV cache holds."""
    with ThreadPoolExecutor(16) as pool:

        def at_once(*jobs: tuple[Any, ...], **params: Any) -> None:
            for future in [pool.submit(client.ask, *job, **params) for job in jobs]:
                future.result()

        left = pool.submit(client.leave, "left", mixed.prompt(40, 40))
        at_once(
            *((f"ragged-{n}", mixed.prompt(n, n)) for n in (1, 2, 31, 32, 33, 70)), ("long", mixed.prompt(300, 300))
        )
        left.result()
        at_once(("long-again", mixed.prompt(300, 300)), ("ragged-70-again", mixed.prompt(70, 70)))
        at_once(("several", mixed.prompt(9, 20)), n=2, temperature=1.0, seed=3)
        at_once(*((f"crowd-{n}", mixed.prompt(400 + n, 60)) for n in range(12)), max_tokens=9)


def refusals(controls: Sequence[Control]) -> list[tuple[int, str]]:
    """How each stage answers a probe at a site of the other."""
    answers = [control.put_probe(probes_of(1 - part)[0]) for part, control in enumerate(controls)]
    return [(status, answer["error"]["code"]) for status, answer in answers]


def through_the_gateway(place: Place) -> tuple[Picture, Picture]:
    """A chat with all probes; and one more after one of them was put, under its id, to a site of the other stage."""
    wanted = chat(place.model, STARS, actscope=True, max_tokens=12, temperature=0, ignore_eos=True)
    moved = PROBES[0].info.id
    with place.client(timeout=60) as client:
        joined = picture(chunks(client, wanted))
        upload = {"vector": [0.0] * WIDTH, "site": HALVES[1][3], "bias": 7.0}
        assert client.put(f"/v1/actscope/probes/{moved}", json=upload).status_code == 200
        return joined, picture(chunks(client, wanted))


def watch(engine: Served, record: Path) -> Watched:
    """The whole run, to the engine's end."""
    found = until(
        lambda: some if len(some := cards(engine)) == 2 else [],
        60,
        what=f"a card of each stage\n{engine.log[-3000:]}",
    )
    controls, rings = [Control(card) for card in found], [Ring(card) for card in found]
    tables = [control.table() for control in controls]
    refused = refusals(controls)
    client = Client(engine)
    drive(client)
    with gateway(engine) as place:
        joined, swapped = through_the_gateway(place)
    texts = dict(client.texts)
    client.ask("last", mixed.prompt(3, 3))  # the ends of all others are told with its first pass
    seen = [{external(request): one for request, one in ring.read().items()} for ring in rings]
    for ring in rings:
        ring.close()
    recordings = _end(engine, [record / f"stage-{part}" for part in range(2)])
    greedy = {name for name, _ in texts if "several" not in name}
    stages = [
        mixed.Ran(engine.configuration.model, texts, seen[n], _slots(tables[n]), recordings[n], engine.log, greedy)
        for n in range(2)
    ]
    return Watched(found, stages, refused, joined, swapped)


def _closed(record: Path) -> bool:
    """Whether the writer has set both of its marks, between which a reader may come."""
    found = Recording.open(record)
    return found.complete and not found.damage


def _end(engine: Served, records: Sequence[Path]) -> list[Recording]:
    """End it as a terminal does; its sidecars are given the time to finish their recordings."""
    engine.ask_to_end()
    engine.process.wait(60)
    until(lambda: all(_closed(record) for record in records), 60, what="finished recordings")
    engine.close()
    return [recording_of(record) for record in records]


def _slots(table: dict[str, Any]) -> dict[str, int]:
    return {probe: shown["slot"] for probe, shown in table.items()}


@pytest.fixture(scope="module")
def watched(bed_directory: Path, engines: Engines) -> Iterator[Watched]:
    directory = short_directory()
    configuration = Configuration(
        make_model("llama", bed_directory / "models"),
        runner="v2",
        pipeline_parallel=2,
        arguments=mixed.CROWDED,
        environment=recording_all(directory),
    )
    yield watch(engines.start(Served, configuration), directory / "record")
    engines.end()
    shutil.rmtree(directory, ignore_errors=True)


def test_each_stage_has_a_card_of_one_group(watched: Watched) -> None:
    first, second = watched.cards
    assert (first.part, second.part) == (0, 1) and {card.parts for card in watched.cards} == {2}
    assert first.group == second.group != ""
    assert first.id != second.id and first.ring != second.ring and first.control != second.control
    assert {(card.kind, card.n_layers, card.endpoint) for card in watched.cards} == {("vllm", LAYERS, "")}


@pytest.mark.parametrize("part", [0, 1])
def test_a_stage_has_its_own_sites_and_probes(watched: Watched, part: int) -> None:
    """Together all sites, each of them once; and a probe is in the table of the stage that has its site."""
    recording = watched.stages[part].recording
    assert recording is not None and sorted(recording.sites) == sorted(HALVES[part])
    assert watched.stages[part].columns.keys() == {probe.id for probe in probes_of(part)}


def test_a_probe_at_a_site_of_the_other_stage_is_refused(watched: Watched) -> None:
    assert watched.refused == [(400, "site_elsewhere")] * 2


def test_both_stages_publish_the_same_rows(watched: Watched) -> None:
    """The same requests under the same ids, their positions, tokens and flags in the same passes."""
    first, second = (stage.seen for stage in watched.stages)
    assert first.keys() == second.keys()
    for key in first:
        for name in ("position", "token_id", "flags"):
            assert first[key].rows[name].tolist() == second[key].rows[name].tolist(), (key, name)
        assert first[key].n_prompt == second[key].n_prompt and first[key].spans == second[key].spans


@pytest.mark.parametrize("part", [0, 1])
def test_every_position_of_every_text_is_there(watched: Watched, part: int) -> None:
    """Once each, computed or from the cache; what preemption made vLLM compute again comes besides, and all of it happened."""
    ran = watched.stages[part]
    mixed.check_labels(ran)
    mixed.check_tokens(ran)
    assert ran.seen["cmpl-long-again-0", 0].having(RowFlag.CACHED).sum() == 288
    assert sum(seen.having(RowFlag.RECOMPUTED).any() for seen in ran.seen.values()) >= 1
    assert len(ran.seen["cmpl-left-0", 0].rows) < 440 and ran.log.count("actscope failed") == 0


@pytest.mark.parametrize("part", [0, 1])
def test_every_score_is_right(watched: Watched, part: int) -> None:
    """At every site of the stage, for every position, those from the prefix cache too."""
    assert mixed.check_scores(watched.stages[part], probes_of(part)) > 10_000


@pytest.mark.parametrize("part", [0, 1])
def test_every_recorded_row_is_right(watched: Watched, part: int) -> None:
    """In `stage-<n>` below the recording's directory."""
    assert mixed.check_recording(watched.stages[part]) > 8_000


def test_a_chat_through_the_gateway_has_the_scores_of_both_stages(watched: Watched) -> None:
    found = watched.joined
    check(found, watched.stages[0].model, PROBES)
    assert found.final is not None and found.final["computed"] == len(found.ids) - 1


def test_a_probe_that_is_put_again_to_the_other_stage_moves(watched: Watched) -> None:
    """One probe of that id, with the new stage's scores; all others keep theirs."""
    check(watched.swapped, watched.stages[0].model, PROBES[1:])
    cells = {cell for (_, probe), cell in watched.swapped.cells.items() if probe == PROBES[0].id}
    assert cells - {None} == {7.0}
    assert [p["site"] for p in watched.swapped.header if p["id"] == PROBES[0].id] == [HALVES[1][3]]


def check(found: Picture, model: Path, probes: Sequence[Probe]) -> None:
    """Every position but the last has the score of every one of these probes: what transformers' rows give."""
    assert len(found.header) == len(PROBES)
    ids = tuple(found.ids[p] for p in sorted(found.ids))
    rows, _ = mixed.truth(model, ids)
    for probe in probes:
        expected, z = mixed.expected_scores(probe, rows[probe.info.site])
        cells = np.array([found.cells[p, probe.id] for p in range(len(ids) - 1)], np.float32)
        slack = mixed.SCORE_TOLERANCE * max(1.0, float(np.abs(z).max()))
        near = np.abs(z[:-1] - probe.info.jump) <= slack if probe.info.activation == "jumprelu" else False
        assert ((np.abs(cells - expected[:-1]) <= slack) | near).all(), probe.id
