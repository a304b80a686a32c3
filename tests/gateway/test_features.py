"""Features of an SAE in the engine: those of the row that they are told under, beside scores that stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.gateway.scripted import strongest
from support.gateway.stage import (
    EngineProcess,
    Picture,
    Stage,
    assert_exact,
    await_scores,
    chat,
    chunks,
    events,
    picture,
)

from actscope.gateway.api.payloads import ChoiceView, encode, features_bulk, features_small, whole
from actscope.gateway.api.schemas import ActscopePayload
from actscope.gateway.scores.probe_table import table_of
from actscope.gateway.scores.request_log import RequestLog

K = 4
SAE = {"site": "layers.4.resid_post", "name": "scripted-sae", "k": K, "n_features": 64}
ASK = {"features": True}


@pytest.fixture(scope="module")
def stage_with_sae() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def sae_engine(stage_with_sae: Stage) -> EngineProcess:
    return stage_with_sae.engine("--features", str(K))


@pytest.fixture(scope="module")
def with_sae(stage_with_sae: Stage, sae_engine: EngineProcess) -> Iterator[httpx.Client]:
    place = stage_with_sae.gateway()
    await_scores(place)
    with place.client() as client:
        yield client


@pytest.fixture(scope="module")
def in_parts() -> Iterator[httpx.Client]:
    """The same with its SAE in the second of two stages."""
    stage = Stage()
    engine = stage.engine("--kind", "vllm", "--parts", "2", "--features", str(K))
    place = stage.gateway(upstream=engine.endpoint)
    await_scores(place)
    with place.client() as client:
        yield client
    stage.close()


Told = dict[int, list[tuple[int, float]] | None]


def payloads(found: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """Every `actscope` of one choice, of which each is as the document says."""
    choices = [choice for chunk in found for choice in chunk["choices"] if choice["index"] == index]
    told = [choice["actscope"] for choice in choices if "actscope" in choice]
    for payload in told:
        ActscopePayload.model_validate(payload, extra="forbid")
    return told


def features(told: list[dict[str, Any]]) -> Told:
    """Features by position, beside scores of the same positions; the SAE is named once, at the start."""
    assert [payload.get("sae") for payload in told] == [SAE] + [None] * (len(told) - 1)
    by_position: Told = {}
    for payload in told:
        assert ("features" in payload) == ("scores" in payload)
        if "features" in payload:
            block = payload["features"]
            assert block["start"] == payload["scores"]["start"] == min(by_position, default=0) + len(by_position)
            assert len(block["ids"]) == len(block["values"]) == len(payload["scores"]["rows"])
            by_position |= rows(block)
    return by_position


def rows(block: dict[str, Any]) -> Told:
    both = zip(block["ids"], block["values"], strict=True)
    pairs = [None if ids is None else list(zip(ids, values, strict=True)) for ids, values in both]
    return dict(enumerate(pairs, block["start"]))


def assert_told(told: Told, found: Picture, missing: list[int]) -> None:
    """Each row has the features that the scripted engine gave to it; those that are missing are null."""
    assert [position for position, pairs in told.items() if pairs is None] == missing
    for position, pairs in told.items():
        if pairs is not None:
            expected = strongest(found.request, position, found.ids[position], K)
            assert [(n, np.float32(v)) for n, v in pairs] == [(n, np.float32(v)) for n, v in expected]
    assert any(told.values())


def check(found: list[dict[str, Any]], missing: list[int], index: int = 0) -> Picture:
    seen = picture(found, index)
    assert_told(features(payloads(found, index)), seen, missing)
    assert_exact(seen)
    return seen


def asked_both_ways(client: httpx.Client, body: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [chunks(client, body), [client.post("/v1/chat/completions", json=body).json()]]


def test_every_row_has_its_features_and_the_last_token_has_none(with_sae: httpx.Client) -> None:
    """Streaming and at once, with the scores that come without them."""
    for found in asked_both_ways(with_sae, chat(actscope=ASK, max_tokens=20)):
        seen = check(found, missing=[25])
        assert seen.headers == [["danger", "joy"]]
        assert seen.letters("danger") == "mmcccm" + "c" * 19 + "n"


def test_requests_that_do_not_ask_get_no_features(with_sae: httpx.Client) -> None:
    """Payloads, headers, cells and states are those of the probes."""
    for ask in (True, {"features": False}):
        for found in asked_both_ways(with_sae, chat(actscope=ask, max_tokens=6)):
            assert not any(payload.keys() & {"sae", "features"} for payload in payloads(found))
            seen = picture(found)
            assert_exact(seen)
            assert {probe for _, probe in seen.cells} == {"danger", "joy"}


def test_each_choice_has_its_own_features(with_sae: httpx.Client) -> None:
    for found in asked_both_ways(with_sae, chat(actscope=ASK, n=2, max_tokens=16)):
        assert len({check(found, [21], index).request for index in (0, 1)}) == 2


def test_features_beside_one_probe_and_without_the_prompt(with_sae: httpx.Client) -> None:
    """The choice of probes and positions is that of the scores."""
    body = chat(actscope={"features": True, "probes": ["joy"], "prompt": False}, max_tokens=20)
    for found in asked_both_ways(with_sae, body):
        blocks = [payload["features"] for payload in payloads(found) if "features" in payload]
        told = {position: pairs for block in blocks for position, pairs in rows(block).items()}
        assert sorted(told) == list(range(6, 26))
        assert_told(told, picture(found), [25])
        assert picture(found).headers == [["joy"]]


def test_no_probe_at_all_and_features_alone(with_sae: httpx.Client) -> None:
    assert check(chunks(with_sae, chat(actscope={"features": True, "probes": []}, max_tokens=16)), [21]).cells == {}


def test_a_cached_prefix_has_the_features_that_were_kept_with_it(with_sae: httpx.Client) -> None:
    """Rows told as cached are told like computed ones; rows that the engine does not tell at all are null."""
    for found in asked_both_ways(with_sae, chat(actscope=ASK, max_tokens=16, scripted={"kept": 4})):
        assert check(found, [21]).final == {"finish_reason": "length", "present": 22, "computed": 21, "cached": 4}
    for found in asked_both_ways(with_sae, chat(actscope=ASK, max_tokens=16, scripted={"cached": 4})):
        check(found, [0, 1, 2, 3, 21])


def test_rows_without_features_are_null(with_sae: httpx.Client) -> None:
    """Not computed, mislabelled, lost: the first keeps its scores, the others have none either."""
    script = {"without_features": [2, 7], "wrong_token_at": 9, "missing_rows": [11]}
    for found in asked_both_ways(with_sae, chat(actscope=ASK, max_tokens=16, scripted=script)):
        assert check(found, [2, 7, 9, 11, 21]).letters("joy") == "c" * 9 + "n" + "c" + "n" + "c" * 9 + "n"


def test_chunks_of_several_tokens_and_a_long_prompt(with_sae: httpx.Client) -> None:
    """Many rows in one block are as exact as one."""
    body = chat(actscope=ASK, content="snow " * 60, max_tokens=20, scripted={"tokens_per_chunk": 7})
    found = chunks(with_sae, body)
    last = max(picture(found).ids)
    assert last > 60
    check(found, [last])


def test_features_go_on_while_probes_come_and_go(with_sae: httpx.Client, sae_engine: EngineProcess) -> None:
    """A new set of probes moves the cells and changes nothing of the features, in the stream and afterwards."""
    body = {"stream": True, **chat(actscope=ASK, max_tokens=16, scripted={"hold_after": 4})}
    upload = {"vector": [0.0] * 4, "site": "layers.1.resid_post"}
    found: list[dict[str, Any]] = []
    with with_sae.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found.append(json.loads(line[6:]))
                if len(picture(found).ids) == 10:
                    assert with_sae.put("/v1/actscope/probes/calm", json=upload).status_code == 200
                    sae_engine.release()
    assert with_sae.delete("/v1/actscope/probes/calm").status_code == 200
    seen = check(found, [21])
    assert seen.headers == [["danger", "joy"], ["danger", "joy", "calm"]]
    later = with_sae.get(f"/v1/actscope/requests/{seen.request}", params={"features": "true"}).json()
    assert later.pop("state") == "done"
    assert check([{"choices": [{"index": 0, "actscope": later}]}], [21]).headers == [["danger", "joy", "calm"]]


def test_a_whole_request_has_its_features_when_asked(with_sae: httpx.Client) -> None:
    """Also when its own client has not asked; without the word it has the probes alone."""
    request = picture(chunks(with_sae, chat(actscope=True, max_tokens=16))).request
    plain = with_sae.get(f"/v1/actscope/requests/{request}").json()
    asked = with_sae.get(f"/v1/actscope/requests/{request}?features=true").json()
    assert asked.keys() - plain.keys() == {"sae", "features"}
    del asked["state"]
    check([{"choices": [{"index": 0, "actscope": asked}]}], [21])


def test_events_and_summaries_are_of_probes_alone(with_sae: httpx.Client) -> None:
    request = picture(chunks(with_sae, chat(actscope=ASK, max_tokens=6))).request
    with with_sae.stream("GET", f"/v1/actscope/requests/{request}/events") as response:
        told = list(events(response.iter_lines()))
    assert not any(event.data.keys() & {"sae", "features"} for event in told)
    assert all(len(row) == 2 for e in told if e.kind == "probe_update" for row in e.data["scores"]["rows"])
    assert [p["id"] for p in told[0].data["probes"]] == ["danger", "joy"]
    assert [sorted(e.data["probes"]) for e in told if e.kind == "probe_final"] == [["danger", "joy"]]


def test_info_names_the_sae_and_the_probes_are_probes(with_sae: httpx.Client, in_parts: httpx.Client) -> None:
    for client in (with_sae, in_parts):
        assert client.get("/v1/actscope/info").json()["engine"]["sae"] == SAE
        listed = client.get("/v1/actscope/probes").json()
        assert sorted(listed) == ["generation", "probes"]
        assert sorted(p["id"] for p in listed["probes"]) == ["danger", "joy"]


def test_an_engine_without_an_sae_refuses(client: httpx.Client) -> None:
    """Completions, streamed or not, and whole requests; the answer says what to set."""
    assert client.get("/v1/actscope/info").json()["engine"]["sae"] is None
    request = picture(chunks(client, chat(actscope=True, max_tokens=2))).request
    refused = [
        client.post("/v1/chat/completions", json=chat(actscope=ASK)),
        client.post("/v1/chat/completions", json=chat(actscope=ASK, stream=True)),
        client.post("/v1/completions", json={"prompt": "hi", "actscope": ASK}),
        client.get(f"/v1/actscope/requests/{request}?features=true"),
    ]
    for answer in refused:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "no_features"
        assert "ACTSCOPE_SAE" in answer.json()["error"]["message"]
    assert [answer.json()["error"]["param"] for answer in refused[2:]] == ["actscope.features", "features"]


def test_a_word_that_is_not_true_or_false_is_refused(with_sae: httpx.Client) -> None:
    answer = with_sae.post("/v1/chat/completions", json=chat(actscope={"features": 1}))
    assert answer.status_code == 400


def test_the_features_of_one_stage_join_the_scores_of_all(in_parts: httpx.Client) -> None:
    """They stand behind the probes of the first stage and of their own, and stay exact."""
    for found in asked_both_ways(in_parts, chat(actscope=ASK, max_tokens=16)):
        assert check(found, [21]).headers == [["danger", "joy"]]
    for found in asked_both_ways(in_parts, chat(actscope=ASK, max_tokens=16, scripted={"kept": 4, "twice_at": 8})):
        check(found, [21])
    missing = {"missing_in_part": [3, 9]}
    for found in asked_both_ways(in_parts, chat(actscope=ASK, max_tokens=16, scripted=missing)):
        seen = check(found, [3, 9, 21])
        assert seen.states[3, "danger"] == "c"
        assert seen.states[3, "joy"] == "n"


@given(st.data())
def test_both_ways_of_rendering_features_agree(data: st.DataObject) -> None:
    """Whole arrays give what the plain loop gives, whatever is in the cells; also for an SAE of no features."""
    n, k = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    numbers = data.draw(npst.arrays(np.float32, (n, k), elements=st.sampled_from([np.nan, -1, 0, 5, 1 << 23])))
    strengths = data.draw(npst.arrays(np.float32, (n, k), elements=st.floats(width=32)))
    values = np.stack([numbers, strengths], axis=2).reshape(n, 2 * k)
    computed = bytes(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    slow, fast = features_small(values, computed), features_bulk(values, computed)
    assert slow[0] == fast[0]
    for one, other in zip(slow[1], fast[1], strict=True):
        assert (one is None) == (other is None)
        np.testing.assert_array_equal(np.array(one or [], np.float32), np.array(other or [], np.float32))


def one_row(*cells: float, computed: bool = True) -> RequestLog:
    """A log with one probe, two features a row, and one row."""
    sae = {"site": "s", "name": "n", "k": 2, "n_features": 9, "first": 3}
    table = table_of({"probes": [{"slot": 0, "id": "a"}], "features": sae})
    log = RequestLog("r")
    log.set_prompt([7])
    ring = np.array([[0.5, 99, 99, *cells]], np.float32)
    log.take_rows(0, np.array([7 if computed else 8]), table.gather(ring), table.columns, 0)
    return log


@pytest.mark.parametrize(
    ("cells", "ids", "values"),
    [
        ((5, 0.1, 3, 0.05), [5, 3], [0.1, 0.05]),
        ((5, 0.1, -1, 0), [5], [0.1]),
        ((-1, 0, -1, 0), [], []),
        ((np.nan,) * 4, None, None),
        ((5, np.inf, -1, 0), [5], [None]),
    ],
)
def test_cells_of_the_ring_as_clients_see_them(cells: tuple[float, ...], ids: Any, values: Any) -> None:
    """Places without a feature are left out, rows without any computation are null, what is not finite is null."""
    told = json.loads(encode(whole(one_row(*cells), features=True)))["features"]
    assert told["ids"] == [ids]
    if values is None:
        assert told["values"] == [None]
    else:
        assert [None if v is None else np.float32(v) for v in told["values"][0]] == [
            None if v is None else np.float32(v) for v in values
        ]


def test_a_row_of_another_token_has_no_features() -> None:
    assert whole(one_row(5, 0.1, 3, 0.05, computed=False), features=True)["features"]["ids"] == [None]


def test_a_ring_that_is_narrower_than_its_table_has_no_features() -> None:
    """What is not in the row is not computed."""
    assert whole(one_row(), features=True)["features"]["ids"] == [None]


def test_an_sae_that_shows_up_later_is_named_then() -> None:
    """A gateway that could not read the table at first: rows before it are null."""
    log, late = one_row(5, 0.1, 3, 0.05), RequestLog("late")
    plain = table_of({"probes": [{"slot": 0, "id": "a"}]}).columns
    late.first_columns = plain
    late.set_prompt([7, 8])
    view = ChoiceView(late, None, True, features=True)
    late.take_rows(0, np.array([7]), np.zeros((1, 1), np.float32), plain, 0)
    first = view.payload()
    assert first is not None
    assert "sae" not in first
    assert first["features"]["ids"] == [None]
    late.take_rows(1, np.array([8]), np.array([[0.5, 5, 0.1, -1, 0]], np.float32), log.columns, 0)
    second = view.payload()
    assert second is not None
    assert second["sae"] == log.columns.sae
    assert second["features"]["ids"] == [[5]]
    assert whole(late, features=True)["features"]["ids"] == [None, [5]]
