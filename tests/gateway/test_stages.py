"""An engine in several parts: one row of all parts' columns for each position, in order, however the parts' rings run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway.stage import (
    EngineProcess,
    Picture,
    Place,
    Stage,
    assert_exact,
    chat,
    chunks,
    picture,
)
from support.waiting import until

from actscope.gateway.api.payloads import whole
from actscope.gateway.scores.match_counts import LogCounts
from actscope.gateway.scores.part_merger import JoinedColumns, MergedRequest
from actscope.gateway.scores.probe_table import Columns, join_described, join_tables, table_of
from actscope.gateway.scores.request_log import RequestLog


@pytest.fixture
def client(parts_place: Place) -> Iterator[httpx.Client]:
    with parts_place.client() as client:
        yield client


def test_a_position_has_the_scores_of_all_parts(client: httpx.Client) -> None:
    found = picture(chunks(client, chat(actscope=True, max_tokens=20)))
    assert_exact(found)
    assert found.headers == [["danger", "joy"]]
    assert found.letters("joy") == "c" * 25 + "n"
    assert found.letters("danger") == "mmcccm" + "c" * 19 + "n"
    assert found.final == {"finish_reason": "length", "present": 26, "computed": 25, "cached": 0}


def test_a_row_that_one_part_never_publishes_has_the_other_parts_scores(client: httpx.Client) -> None:
    found = picture(chunks(client, chat(actscope=True, max_tokens=6, scripted={"missing_in_part": [3, 7, 8]})))
    assert_exact(found)
    assert found.letters("joy") == "ccc" + "n" + "ccc" + "nn" + "cc" + "n"
    assert found.letters("danger") == "mmcccm" + "c" * 5 + "n"


def test_a_part_that_is_late_holds_the_row_back_and_not_the_answer(client: httpx.Client) -> None:
    """Its rows come when the request has ended; until then the positions are pending."""
    found = picture(chunks(client, chat(actscope=True, max_tokens=6, scripted={"late_part": 1})))
    assert_exact(found)
    assert found.letters("joy") == "c" * 11 + "n"
    assert found.letters("danger") == "mmcccm" + "c" * 5 + "n"


def test_cached_and_twice_computed_rows_are_delivered_once(client: httpx.Client) -> None:
    found = picture(chunks(client, chat(actscope=True, max_tokens=6, scripted={"kept": 3, "twice_at": 8})))
    assert_exact(found)
    assert found.letters("joy") == "c" * 11 + "n"
    assert found.final is not None
    assert found.final["cached"] == 3


def test_a_request_sent_directly_ends_when_all_parts_say_so(client: httpx.Client, parts_engine: EngineProcess) -> None:
    with parts_engine.client() as direct:
        direct.post("/v1/chat/completions", json=chat(max_tokens=7), headers={"x-request-id": "both"})
    until(lambda: client.get("/v1/actscope/requests/chatcmpl-both").json().get("state") == "done")
    payload = client.get("/v1/actscope/requests/chatcmpl-both").json()
    assert [p["id"] for p in payload["probes"]] == ["danger", "joy"]
    assert payload["final"]["computed"] == 12


def upload(site: str) -> dict[str, Any]:
    return {"vector": [0.0] * 4, "site": site, "threshold": 0.5, "token_mask": "special"}


def test_a_probe_goes_to_the_part_that_has_its_site_and_may_move(
    client: httpx.Client, parts_engine: EngineProcess
) -> None:
    """Swapped to another stage's site while a request runs, it is another probe from there on, and there is one of it."""
    body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"hold_after": 4})}
    found, headers = Picture(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                payload = json.loads(line[6:])["choices"][0]["actscope"]
                found.add(payload)
                headers += [payload["probes"]] if "probes" in payload else []
                if len(found.ids) == 10:
                    moved = client.put("/v1/actscope/probes/danger", json=upload("layers.4.resid_post"))
                    assert (moved.status_code, moved.json()["site"]) == (200, "layers.4.resid_post")
                    parts_engine.release()
    listed = client.get("/v1/actscope/probes").json()
    back = client.put("/v1/actscope/probes/danger", json=upload("layers.1.resid_post"))
    assert back.status_code == 200
    assert_exact(found)
    assert [(p["id"], p["site"]) for p in headers[-1]] == [
        ("danger", "layers.4.resid_post"),
        ("joy", "layers.5.resid_post"),
    ]
    assert sorted(p["since"] for p in listed["probes"]) == sorted(p["since"] for p in headers[-1])
    assert [p["id"] for p in client.get("/v1/actscope/probes").json()["probes"]] == ["danger", "joy"]
    assert found.letters("joy") == "c" * 14 + "n"


def test_a_probe_is_removed_where_it_is_and_a_site_that_no_part_has_is_refused(client: httpx.Client) -> None:
    assert client.put("/v1/actscope/probes/calm", json=upload("layers.5.resid_post")).status_code == 200
    assert client.delete("/v1/actscope/probes/calm").status_code == 200
    assert client.delete("/v1/actscope/probes/calm").status_code == 404
    refused = client.put("/v1/actscope/probes/calm", json=upload("layers.9.resid_post"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "site_elsewhere")


def test_a_mark_goes_to_all_parts_and_the_recording_has_all_sites(
    client: httpx.Client, parts_engine: EngineProcess
) -> None:
    assert client.post("/v1/actscope/requests/whoever/mark", json={}).status_code == 200
    assert [(m["part"], m["request"]) for m in parts_engine.state()["marks"]] == [(0, "whoever"), (1, "whoever")]
    sites = client.get("/v1/actscope/recording").json()["sites"]
    assert sites == [f"layers.{n}.resid_post" for n in range(6)]


def test_the_command_line_finds_the_part(parts_stage: Stage, parts_engine: EngineProcess) -> None:
    listed = parts_stage.command("probe", "list", "--json")
    assert sorted(p["id"] for p in json.loads(listed.stdout)) == ["danger", "joy"]


# The merger by itself

A = table_of({"generation": 1, "probes": [{"slot": 0, "id": "a", "site": "s"}]}, 0, 2)
B = table_of({"generation": 1, "probes": [{"slot": 0, "id": "b", "site": "s"}]}, 1, 2)


@given(st.data())
def test_parts_in_any_order_make_the_log_of_one_ring(data: st.DataObject) -> None:
    """However the parts' rows come, each in its own order and with its own holes, a cell is there iff its part told it."""
    n = data.draw(st.integers(1, 12))
    holes = [data.draw(st.sets(st.integers(0, n - 1))) for _ in range(2)]
    log = RequestLog("r")
    log.set_prompt(list(range(n)))
    merged = MergedRequest(log, [A.columns, B.columns], JoinedColumns())
    rest = [sorted(set(range(n)) - hole) for hole in holes]
    while any(rest):
        part = data.draw(st.sampled_from([p for p in (0, 1) if rest[p]]))
        position = rest[part].pop(0)
        values = np.array([[position + 100 * part]], np.float32)
        merged.parts[part].take_row(position, position, values, (A, B)[part].columns, 0)
        done = min(each.next_position for each in merged.parts)
        assert len(log.scores) <= max(done, 0)
    for ending in merged.parts:
        ending.end_rows(0)
    log.finish("done", "stop")
    rows = whole(log)["scores"]["rows"]
    for position in range(n):
        for part in (0, 1):
            told = len(rows[position]) == 2 and rows[position][part] is not None
            assert told == (position not in holes[part])
            if told:
                assert rows[position][part] == position + 100 * part


def test_a_part_with_another_token_at_a_position_has_no_cell_there() -> None:
    wrong = LogCounts()
    log = RequestLog("r", counts=wrong)
    log.set_prompt([7, 8])
    merged = MergedRequest(log, [A.columns, B.columns], JoinedColumns())
    merged.parts[0].take_rows(0, np.array([7, 8]), np.ones((2, 1), np.float32), A.columns, 0)
    merged.parts[1].take_rows(0, np.array([7, 9]), np.ones((2, 1), np.float32), B.columns, 0)
    assert wrong.mismatched_rows == 1
    assert whole(log)["scores"] == {"start": 0, "rows": [[1, 1], [1, None]], "states": ["cc", "cn"]}


def test_the_parts_tables_are_one_and_no_two_generations_are_the_same() -> None:
    described = [
        {"generation": 3, "probes": [{"slot": 0, "id": "a", "site": "x", "since": 1}]},
        {
            "generation": 5,
            "probes": [{"slot": 0, "id": "a", "site": "y", "since": 4}, {"slot": 1, "id": "b", "since": 1}],
        },
    ]
    joined = join_described(described)
    assert joined["generation"] == 11
    assert {p["id"]: p["since"] for p in joined["probes"]} == {"a": 9, "b": 3}
    tables = [table_of(d, i, 2) for i, d in enumerate(described)]
    columns: Columns = join_tables(tables).columns
    assert dict(zip(columns.ids, columns.since, strict=True)) == {"a": 9, "b": 3}
    assert columns.sites[columns.ids.index("a")] == "y"
