"""Scores: every one belongs to the request, position, token and probe that it is told under."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from support.gateway.stage import EngineProcess, Picture, assert_exact, chat, chunks, picture


def streamed(client: httpx.Client, **fields: Any) -> Picture:
    return picture(chunks(client, chat(actscope=True, **fields)))


def test_every_score_is_the_one_of_its_request_position_and_token(client: httpx.Client) -> None:
    """A plain stream: all rows but the last token's, masked where the probe says so, exact everywhere."""
    found = streamed(client, max_tokens=20)
    assert_exact(found)
    assert found.letters("joy") == "c" * 25 + "n"
    assert found.letters("danger") == "mmcccm" + "c" * 19 + "n"
    assert found.final == {"finish_reason": "length", "present": 26, "computed": 25, "cached": 0}


def test_token_bytes_join_to_the_text(client: httpx.Client) -> None:
    """Characters that are split over tokens come together again."""
    all_chunks = chunks(client, chat(actscope={"prompt": False}, max_tokens=40))
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in all_chunks)
    assert "❄" in said
    assert picture(all_chunks).text == said


def test_whole_answer_has_the_same_shape_at_once(client: httpx.Client) -> None:
    """Without streaming everything is on the choice, as exact as in the stream."""
    answer = client.post("/v1/chat/completions", json=chat(actscope=True, max_tokens=12)).json()
    found = picture([answer])
    assert_exact(found)
    assert found.request == answer["id"]
    assert found.letters("joy") == "c" * 17 + "n"
    assert "token_ids" not in answer["choices"][0]
    assert "prompt_token_ids" not in answer


def test_a_row_with_another_token_id_is_never_delivered(client: httpx.Client) -> None:
    """A mislabelled row becomes `never computed`, and is counted."""
    before = client.get("/v1/actscope/info").json()["ring"]["mismatched_rows"]
    found = streamed(client, max_tokens=8, scripted={"wrong_token_at": 9})
    assert_exact(found)
    assert found.letters("joy") == "c" * 9 + "n" + "c" * 3 + "n"
    assert client.get("/v1/actscope/info").json()["ring"]["mismatched_rows"] == before + 1


def test_a_mislabelled_row_is_not_delivered_in_a_whole_answer(client: httpx.Client) -> None:
    """The same without streaming, where the rows come before the tokens are known."""
    body = chat(actscope=True, max_tokens=8, scripted={"wrong_token_at": 9})
    found = picture([client.post("/v1/chat/completions", json=body).json()])
    assert_exact(found)
    assert found.letters("joy") == "c" * 9 + "n" + "c" * 3 + "n"


def test_missing_rows_become_never_computed(client: httpx.Client) -> None:
    """Rows that never come are marked `never computed`, and those around them keep their places."""
    found = streamed(client, max_tokens=10, scripted={"missing_rows": [2, 7, 8]})
    assert_exact(found)
    assert found.letters("joy") == "cc" + "n" + "cccc" + "nn" + "c" * 6 + "n"
    assert found.final is not None
    assert found.final["computed"] == 12


def test_cached_prompt_positions_are_never_computed(client: httpx.Client) -> None:
    """A prefix that the engine had cached has no rows, and the rest of the prompt has."""
    assert streamed(client, max_tokens=3, scripted={"cached": 4}).letters("joy") == "nnnn" + "cccc" + "n"


def test_states_of_cells_that_are_not_numbers(client: httpx.Client) -> None:
    """A cell that was not computed for a probe is `n`, one that is not finite is `x`."""
    assert (
        streamed(client, max_tokens=6, scripted={"nan_at": 7, "inf_at": 9}).letters("joy")
        == "c" * 7 + "ncx" + "c" + "n"
    )


def test_a_row_computed_twice_is_delivered_once(client: httpx.Client) -> None:
    """After a preemption the first score stands."""
    found = streamed(client, max_tokens=8, scripted={"twice_at": 8})
    assert_exact(found)
    assert found.letters("joy") == "c" * 13 + "n"


@pytest.mark.parametrize("per_chunk", [3, 7])
def test_chunks_of_several_tokens(client: httpx.Client, per_chunk: int) -> None:
    """Several tokens in one chunk carry all their rows."""
    found = streamed(client, max_tokens=20, scripted={"tokens_per_chunk": per_chunk})
    assert_exact(found)
    assert found.letters("joy") == "c" * 25 + "n"


def test_rows_that_come_after_their_tokens(client: httpx.Client) -> None:
    """Rows that the engine publishes late are waited for at the end."""
    found = streamed(client, max_tokens=10, scripted={"late_rows": 0.03})
    assert_exact(found)
    assert found.letters("joy") == "c" * 15 + "n"


def test_probes_can_be_chosen(client: httpx.Client) -> None:
    """Only the probes asked for are sent, in the order asked for."""
    found = picture(chunks(client, chat(actscope={"probes": ["joy", "danger"]}, max_tokens=4)))
    assert found.headers == [["joy", "danger"]]
    assert_exact(found)
    only = picture(chunks(client, chat(actscope={"probes": ["joy"]}, max_tokens=4)))
    assert {probe for _, probe in only.cells} == {"joy"}


def test_an_unknown_probe_is_refused(client: httpx.Client) -> None:
    """The answer lists the known ones."""
    answer = client.post("/v1/chat/completions", json=chat(actscope={"probes": ["anger"]}))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_probe"
    assert "'danger', 'joy'" in answer.json()["error"]["message"]


def test_the_prompt_can_be_left_out(client: httpx.Client) -> None:
    """With `prompt: false` positions begin behind the prompt."""
    found = picture(chunks(client, chat(actscope={"prompt": False}, max_tokens=5)))
    assert min(found.ids) == 6 == found.prompt_tokens
    assert min(position for position, _ in found.cells) == 6


def test_each_choice_has_its_own_scores(client: httpx.Client) -> None:
    """With n = 2 the choices are told apart, streaming or not."""
    body = chat(actscope=True, n=2, max_tokens=6)
    streamed_chunks = chunks(client, body)
    answer = client.post("/v1/chat/completions", json=body).json()
    for source in (streamed_chunks, [answer]):
        for index in (0, 1):
            found = picture(source, index)
            assert found.request.startswith(f"{index}_chatcmpl-")
            assert_exact(found)
            assert found.letters("joy") == "c" * 11 + "n"


def test_completions_with_several_prompts(client: httpx.Client) -> None:
    """Each prompt of /v1/completions is a choice with its own request id."""
    body = {"prompt": ["the hill", "the river"], "actscope": True, "max_tokens": 5}
    for source in (chunks(client, body, "/v1/completions"), [client.post("/v1/completions", json=body).json()]):
        for index in (0, 1):
            found = picture(source, index)
            assert found.request.endswith(f"-{index}")
            assert_exact(found)


def test_a_probe_added_and_removed_while_a_request_runs(client: httpx.Client, engine: EngineProcess) -> None:
    """The header comes again when the set changes, and every cell stays under its own probe."""
    body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"hold_after": 4})}
    upload = {"vector": [0.0] * 4, "site": "layers.1.resid_post"}
    found = Picture()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found.add(json.loads(line[6:])["choices"][0]["actscope"])
                if len(found.ids) == 10:
                    assert client.put("/v1/actscope/probes/calm", json=upload).status_code == 200
                    assert client.delete("/v1/actscope/probes/danger").status_code == 200
                    engine.release()
    assert client.delete("/v1/actscope/probes/calm").status_code == 200
    danger = {"vector": [0.0] * 4, "site": "layers.3.resid_post", "threshold": 0.5, "token_mask": "special"}
    assert client.put("/v1/actscope/probes/danger", json=danger).status_code == 200
    assert found.headers == [["danger", "joy"], ["joy", "calm"]]
    assert_exact(found)
    assert found.letters("joy") == "c" * 14 + "n"
    assert found.letters("calm").endswith("c" * 5 + "n")
    whole = client.get(f"/v1/actscope/requests/{found.request}").json()
    assert [p["id"] for p in whole["probes"]] == ["danger", "joy", "calm"]
    assert whole["scores"]["states"][7] == "ccn"


def test_a_probe_swapped_while_a_request_runs(client: httpx.Client, engine: EngineProcess) -> None:
    """The header comes again with another `since`; the whole request shows the last version from its first row on."""
    body = {"stream": True, **chat(actscope=True, max_tokens=9, scripted={"hold_after": 4})}
    upload = {"vector": [0.0] * 4, "site": "layers.3.resid_post", "threshold": 0.5, "token_mask": "special"}
    found, headers = Picture(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                payload = json.loads(line[6:])["choices"][0]["actscope"]
                found.add(payload)
                headers += [payload["probes"]] if "probes" in payload else []
                if len(found.ids) == 10:
                    assert client.put("/v1/actscope/probes/danger", json=upload).status_code == 200
                    engine.release()
    assert found.headers == [["danger", "joy"]] * 2
    assert headers[0][0]["since"] < headers[1][0]["since"]
    assert headers[0][1] == headers[1][1]
    assert_exact(found)
    assert found.letters("danger") == "mmcccm" + "c" * 8 + "n"
    whole = client.get(f"/v1/actscope/requests/{found.request}").json()
    assert whole["probes"] == headers[1]
    assert "".join(s[0] for s in whole["scores"]["states"]) == "mmnnnmnnn" + "c" * 5 + "n"
    listed = client.get("/v1/actscope/probes").json()["probes"]
    assert [p["since"] for p in listed] == [p["since"] for p in headers[1]]


def test_tokens_that_a_parser_has_swallowed_do_not_shift_the_labels(client: httpx.Client) -> None:
    """The answer lacks a token. From the second row that disagrees the log follows the rows: no later score is lost or moved."""
    body = chat(actscope=True, max_tokens=30, scripted={"swallow_at": 4})
    found = picture(chunks(client, body))
    assert_exact(found)
    assert found.prompt_tokens is not None
    letters = found.letters("danger")
    assert letters[: found.prompt_tokens + 4].strip("cm") == ""
    assert letters.count("n") <= 4
    assert sum(cell is not None for cell in found.cells.values()) >= 2 * (len(letters) - 6)
