"""The feed's HTTP API, as a client without our library sees it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from support.feed.feeding import TOKEN, Feeding, feeding

ROUTES = [
    "/",
    "/activations",
    "/activations/tensor",
    "/activations/stream",
    "/stats",
    "/statistics",
    "/near",
    "/openapi.json",
]


@pytest.fixture
def http(feed: Feeding) -> Any:
    with httpx.Client(base_url=feed.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        yield client


def test_rows_as_json_are_the_rows_as_bytes(http: httpx.Client) -> None:
    """The same position gives the same values, whichever way they are asked for."""
    for attempt in range(10):  # until both groups begin in the same window
        query: dict[str, str | int] = {"num_samples": 5, "sites": "1", "labels": True, "group": f"json{attempt}"}
        a = http.get("/activations", params=query).json()
        b = http.get("/activations/tensor", params={"num_samples": 5, "sites": "1", "group": f"bytes{attempt}"})
        if a["position"] == b.headers["X-Actscope-Position"]:
            break
    assert a["position"] == b.headers["X-Actscope-Position"]
    assert b.headers["X-Actscope-Shape"] == "5,256" and b.headers["X-Actscope-Dtype"] == "float32"
    rows = np.frombuffer(b.content, "<f4").reshape(5, 256)
    assert (np.array(a["activations"], np.float32) == rows).all()
    assert a["shape"] == [5, 256] and a["sites"] == ["layers.1.resid_post"] and len(a["labels"]["token_id"]) == 5


def test_answers_have_the_names_of_other_activation_servers(http: httpx.Client, feed: Feeding) -> None:
    """X-Tensor-* headers, `num_samples`, `indices` (places in the buffer, each row's own), `buffer_stats`, `valid_samples`."""
    query: dict[str, str | int] = {"num_samples": 6, "sites": "1", "group": "names"}
    raw = http.get("/activations/tensor", params=query)
    assert (raw.headers["X-Tensor-Shape"], raw.headers["X-Tensor-Dtype"]) == ("6,256", "torch.float32")
    answer = http.get("/activations", params=query).json()
    assert answer["num_samples"] == 6 and answer["buffer_stats"]["buffer_size"] == 4000
    memory = feed.server.service.broker.memory
    assert memory is not None and len(set(answer["indices"])) == 6
    rows = [memory.plane(place // 2000, 0)[place % 2000] for place in answer["indices"]]
    assert (np.array(answer["activations"], np.float32) == np.stack(rows)).all()
    stats = http.get("/stats").json()
    assert stats["valid_samples"] == stats["ready_rows"] and http.get("/").json()["status"] == stats["state"]


def test_a_safetensors_answer_has_rows_labels_and_where_they_stand(http: httpx.Client) -> None:
    """One file says everything: values, whose they are, model, sites and position."""
    answer = http.get("/activations/tensor", params={"num_samples": 7, "format": "safetensors", "group": "st"})
    tensors = load(answer.content)
    assert tensors["activations"].shape == (7, 2, 256)
    assert {name: len(tensors[name]) for name in ("text", "piece", "position", "token_id")} == dict.fromkeys(
        ("text", "piece", "position", "token_id"), 7
    )
    about = json.loads(answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")])["__metadata__"]
    assert about["position"] == answer.headers["X-Actscope-Position"] and about["model"].startswith("actscope/builtin@")


def test_a_stream_is_batch_after_batch(http: httpx.Client) -> None:
    """Batches come one behind the other, and are those that single requests would have got."""
    with http.stream(
        "GET", "/activations/stream", params={"batch_size": 300, "batches": 4, "sites": "2", "group": "s1"}
    ) as answer:
        assert answer.headers["X-Actscope-Shape"] == "300,256"
        data = b"".join(answer.iter_raw())
    rows = np.frombuffer(data, "<f4").reshape(-1, 256)
    assert len(rows) == 1200 and len(np.unique(rows, axis=0)) > 1100  # texts that begin alike have rows alike


@pytest.mark.parametrize(
    ("query", "status", "code", "says"),
    [
        ({"num_samples": 0}, 400, "invalid_value", "num_samples"),
        ({"num_samples": "many"}, 400, "invalid_value", "num_samples"),
        ({"num_samples": 100_000}, 400, "too_many_samples", "expected 1 to 2000"),
        ({"sites": "7"}, 404, "unknown_site", "this feed has layers.1.resid_post, layers.2.resid_post"),
        ({"sites": "../../etc"}, 404, "unknown_site", "this feed has"),
        ({"group": "a b"}, 400, "invalid_value", "group"),
        ({"format": "pickle"}, 400, "invalid_value", "format"),
        ({"wait": -1}, 400, "invalid_value", "wait"),
    ],
)
def test_bad_parameters_are_refused_with_what_was_expected(
    http: httpx.Client, query: dict[str, Any], status: int, code: str, says: str
) -> None:
    """A refusal names the parameter, and what is possible; no rows are taken."""
    answer = http.get("/activations/tensor", params={"num_samples": 1, **query})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert says in error["message"] + str(error["param"])


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_needs_the_token_and_no_foreign_origin(feed: Feeding, route: str) -> None:
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Cookie": "other=1", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "https://evil.example"}, 403),
    ):
        assert httpx.get(feed.url + route, headers=headers).status_code == status
    assert httpx.post(feed.url + "/refresh").status_code == 401


def test_before_there_are_rows_it_says_when_to_ask_again() -> None:
    """While the model is being loaded, and while too few rows are ready, the answer is 503 with Retry-After; `wait` waits."""
    with (
        feeding(texts=60, epochs=1) as feed,
        httpx.Client(base_url=feed.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as http,
    ):
        answer = http.get("/activations/tensor", params={"num_samples": 5})
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["code"] == "not_ready"
        assert http.get("/").json()["sites"] is None
        assert http.get("/stats").json()["state"] == "loading"
        with feed.client(transport="http") as client:
            client.wait_for_data()
        taken = 0
        while (answer := http.get("/activations/tensor", params={"num_samples": 1500, "wait": 30})).status_code == 200:
            taken += int(answer.headers["X-Actscope-Shape"].partition(",")[0])
        assert answer.status_code == 410 and answer.json()["error"]["code"] == "ended"
        stats = http.get("/stats").json()
        assert (
            stats["state"] == "ended" and stats["counts"]["delivered_rows"] == taken == stats["counts"]["filled_rows"]
        )


def test_a_refresh_brings_new_rows(http: httpx.Client) -> None:
    """What was ready is dropped and counted; the next rows come from later on."""
    query: dict[str, str | int] = {"num_samples": 10, "group": "fresh", "wait": 30}
    before = http.get("/activations/tensor", params=query).headers["X-Actscope-Position"]
    dropped = http.post("/refresh").json()["dropped_rows"]
    answer = http.get("/activations/tensor", params=query)
    assert dropped > 0 and int(answer.headers["X-Actscope-Missed-Rows"]) > 0
    epoch, cursor = (int(part) for part in before.partition("@")[0].split(":")[1:])
    later = tuple(int(part) for part in answer.headers["X-Actscope-Position"].partition("@")[0].split(":")[1:])
    assert later > (epoch, cursor)


def test_statistics_are_those_of_the_rows(http: httpx.Client) -> None:
    """Mean, standard deviation and mean norm agree with the rows themselves, as far as a sample can tell."""
    found = http.get("/statistics").json()["sites"]["layers.2.resid_post"]
    answer = http.get("/activations/tensor", params={"num_samples": 2000, "sites": "2", "group": "stat", "wait": 30})
    rows = np.frombuffer(answer.content, "<f4").reshape(-1, 256).astype(np.float64)
    norm = np.linalg.norm(rows, axis=1).mean()
    assert found["mean_norm"] == pytest.approx(norm, rel=0.1)
    assert found["norm_scale"] == pytest.approx(16 / found["mean_norm"])
    spread = rows.std(0) / np.sqrt(len(rows)) * 20 + 1e-6
    assert (np.abs(np.array(found["mean"]) - rows.mean(0)) < spread).mean() > 0.95


def test_schemathesis_finds_nothing(feed: Feeding) -> None:
    """Whatever its OpenAPI document allows, and much that it does not, gets an answer that the document knows.

    A 503 with Retry-After, which says that there are not so many rows yet, is such an answer; no other 5xx is.
    """
    headers = {"Authorization": f"Bearer {TOKEN}"}
    schema = schemathesis.openapi.from_url(f"{feed.url}/openapi.json", headers=headers)

    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            for name in ("batches", "wait"):  # an endless stream is what it is asked for, and no finding
                if isinstance(case.query.get(name), int | float):
                    case.query[name] = min(case.query[name], 2)
            answer = case.call_and_validate(
                headers=headers, base_url=feed.url, timeout=90, excluded_checks=[not_a_server_error]
            )
            assert answer.status_code < 500 or (answer.status_code == 503 and answer.headers["retry-after"])

        check()
