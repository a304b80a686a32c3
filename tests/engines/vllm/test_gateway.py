"""Real vLLM, the real `actscope gateway` in front of it, and OpenAI's client: what a user has after two commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from support.gateway.stage import TOKEN, Picture, Place, await_engine, await_scores, events, picture
from support.vllm import reference
from support.vllm.bed import Configuration, Served, free_port
from support.vllm.pool import Engines, short_directory
from support.waiting import until

from actscope.engines.builtin import NAME, model_path, probes_path
from actscope.probes import load_probes
from actscope.serving.telemetry.dashboard import read_dashboard
from actscope.serving.telemetry.exposition import OPENMETRICS

PROBES = load_probes(probes_path())
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about a fox in the snow"}]
SCORES: dict[str, Any] = {"actscope": True}
#: Rounding of vLLM's kernels against transformers', on logits of a trained model.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def served(engines: Engines) -> Iterator[Served]:
    """The built-in model with its own probes, recording what is marked."""
    environment = {
        "ACTSCOPE_PROBES": str(probes_path()),
        "ACTSCOPE_MODEL_NAME": NAME,
        "ACTSCOPE_RECORD": str(short_directory() / "kept.acts"),
    }
    yield engines.start(Served, Configuration(model_path(), environment=environment))
    engines.end()


@contextmanager
def gateway(engine: Served) -> Iterator[Place]:
    """The command, as a user starts it beside that server."""
    place = Place(f"http://127.0.0.1:{free_port()}", model=engine.configuration.model.name)
    command = [sys.executable, "-m", "actscope", "gateway", "--upstream", f"{engine.url}/v1", "--token", TOKEN]
    environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": str(engine.runtime_directory)}
    process = subprocess.Popen([*command, "--port", place.url.rpartition(":")[2]], env=environment)
    try:
        until(lambda: _listens(place), 30)
        await_engine(place)
        await_scores(place)
        yield place
    finally:
        process.terminate()
        process.wait(20)


def _listens(place: Place) -> bool:
    try:
        return httpx.get(place.url, trust_env=False).status_code == 401
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def place(served: Served) -> Iterator[Place]:
    with gateway(served) as place:
        yield place


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        yield client


def dumped(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_dump(exclude_unset=True)
    return found


def check(found: Picture, *, whole_prompt: bool = True) -> None:
    """Every position but the last has every probe's score, and it is what transformers' rows give."""
    assert found.final is not None
    ids = [found.ids[p] for p in sorted(found.ids)]
    assert found.final["present"] == len(ids)
    assert not whole_prompt or found.final["computed"] == len(ids) - 1
    rows = reference.resid_post(model_path(), ids)
    assert {p["id"] for p in found.header} == {probe.id for probe in PROBES}
    for probe in PROBES:
        expected = probe.score(rows[probe.info.layer])
        for position in range(len(ids) - 1):
            letter = found.states[position, probe.id]
            assert letter in "cm", (position, probe.id)
            if letter == "c":
                cell = found.cells[position, probe.id]
                assert cell is not None
                np.testing.assert_allclose(cell, expected[position], atol=TOLERANCE)


def test_a_streamed_chat_has_its_scores(client: openai.OpenAI, place: Place) -> None:
    stream = client.chat.completions.create(
        model=place.model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True, extra_body=SCORES
    )
    found = [dumped(chunk) for chunk in stream]
    check(picture(found))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in found)


def test_a_prompt_that_comes_again_still_has_its_scores(client: openai.OpenAI, place: Place) -> None:
    """From the prefix cache, and counted apart; with `full_prompt` they are computed again."""
    prompt = "The fox ran over the snow and " * 12
    options: Any = {"model": place.model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    cold, warm = (picture([dumped(client.completions.create(**options, extra_body=SCORES))]) for _ in range(2))
    full = picture([dumped(client.completions.create(**options, extra_body={"actscope": {"full_prompt": True}}))])
    for found in (cold, warm, full):
        check(found)
    assert [found.final["cached"] > 0 for found in (cold, warm, full) if found.final] == [False, True, False]


def test_choices_and_prompts_have_their_own_scores(client: openai.OpenAI, place: Place) -> None:
    several = client.completions.create(
        model=place.model, prompt=["Once upon a time", "The sea"], n=2, max_tokens=6, seed=1, extra_body=SCORES
    )
    stream = client.chat.completions.create(
        model=place.model, messages=MESSAGES, n=2, max_tokens=6, seed=1, stream=True, extra_body=SCORES
    )
    chunks = [dumped(chunk) for chunk in stream]
    found = [picture([dumped(several)], i) for i in range(4)] + [picture(chunks, i) for i in range(2)]
    assert len({one.request for one in found}) == 6
    for one in found:
        check(one)


def test_an_echoed_prompt_keeps_its_text(client: openai.OpenAI, place: Place) -> None:
    answer = client.completions.create(
        model=place.model, prompt="Once upon", echo=True, max_tokens=4, temperature=0, extra_body=SCORES
    )
    assert answer.choices[0].text.startswith("Once upon")
    found = picture([dumped(answer)])
    assert found.final is not None
    assert found.final["computed"] == found.final["present"] > 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_asks_for_nothing_gets_vllms_own_answer(served: Served, place: Place, stream: bool) -> None:
    """The same bytes as from vLLM itself, but for the clock; only its id is the gateway's."""
    body = {"model": place.model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stream": stream}
    with place.client() as through:
        answer = through.post("/v1/chat/completions", json=body)
    name = answer.headers["x-request-id"].removeprefix("chatcmpl-")
    own = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers={"x-request-id": name}, trust_env=False)
    assert _pieces(answer.text) == _pieces(own.text)


def _pieces(text: str) -> tuple[list[str], str]:
    """The events without what the clock decides: when they were made, and how many tokens had come by each; and all they say."""
    plain = re.sub(r'"created":\d+', '"created":0', text)
    said = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', plain))
    shapes = re.sub(r'"content":"(?:[^"\\]|\\.)+"', '"content":"…"', plain).split("\n\n")
    return [shape for shape, before in zip(shapes, ["", *shapes], strict=False) if shape != before], said


def test_a_request_sent_to_vllm_directly_is_watched_by_two(served: Served, place: Place) -> None:
    body = {"model": place.model, "messages": MESSAGES, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(3) as pool, place.client() as client:
        answer = pool.submit(served.post, "/v1/chat/completions", body, "direct")
        until(lambda: client.get("/v1/actscope/requests/chatcmpl-direct").status_code == 200, 60)
        seen = [pool.submit(_watched, place) for _ in range(2)]
        assert answer.result()["id"] == "chatcmpl-direct"
        one, other = (future.result() for future in seen)
    assert one == other
    whole = Picture()
    for event in one:
        if event.kind in ("token", "probe_update"):
            whole.add(event.data)
    assert len(whole.ids) == (whole.prompt_tokens or 0) + 59
    assert set(whole.states.values()) <= {"c", "m"}


@pytest.mark.parametrize("length", [112, 300])
def test_a_request_with_a_long_id_has_its_rows_and_is_found_by_that_id(
    served: Served, place: Place, length: int
) -> None:
    """An id of a client's tracing that a ring has no room for; nothing of it is in doubt."""
    body = {"model": place.model, "messages": MESSAGES, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    name = served.post("/v1/chat/completions", body, "t" * length)["id"]
    assert name == f"chatcmpl-{'t' * length}"
    with place.client() as client:
        path = f"/v1/actscope/requests/{name}"
        found = until(lambda: _ended(client, path), 60, what="the request in the log")
        assert len(found["tokens"]["ids"]) == found["prompt_tokens"] + 4 == found["final"]["computed"]
        assert set("".join(found["scores"].get("states", []))) <= {"c", "m"}
        marked = client.post(f"{path}/mark", json={"why": "long"})
        assert (marked.status_code, marked.json().get("rows")) == (200, found["final"]["computed"])
        troubles = client.get("/v1/actscope/info").json()["troubles"]
    assert "model_uncertain_rows" not in {one["name"] for one in troubles}


def _ended(client: httpx.Client, path: str) -> Any:
    answer = client.get(path)
    return answer.json() if answer.status_code == 200 and answer.json()["state"] == "done" else None


def test_the_counters_of_vllms_processes_are_in_info_and_in_the_metrics(served: Served, place: Place) -> None:
    with place.client() as client:

        def values() -> dict[str, dict[str, int]]:
            sources = client.get("/v1/actscope/info").json()["counters"]
            return {one["source"]: one["values"] for one in sources if one["engine"]}

        before = until(lambda: values() if {"model", "sidecar"} <= values().keys() else None, 60)["model"]["model_rows"]
        body = {"model": place.model, "messages": MESSAGES, "max_tokens": 5, "ignore_eos": True}
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        until(lambda: values()["model"]["model_rows"] + values()["model"]["model_cached_rows"] > before, 60)
        assert usage["completion_tokens"] == 5
        text = client.get("/v1/actscope/metrics").text
        assert 'actscope_model_rows_total{engine="' in text and 'actscope_flight_steps_total{engine="' in text


def _watched(place: Place) -> list[Any]:
    url = "/v1/actscope/requests/chatcmpl-direct/events"
    with place.client(timeout=120) as client, client.stream("GET", url) as response:
        return list(events(response.iter_lines()))


def test_vllms_other_paths_go_through(place: Place, served: Served) -> None:
    """Tokens, metrics, version; and an embedding that this model refuses is refused in vLLM's own words."""
    with place.client() as client:
        asked = {"model": place.model, "prompt": "Once upon a time"}
        direct = httpx.post(f"{served.url}/tokenize", json=asked, trust_env=False)
        assert client.post("/tokenize", json=asked).text == direct.text
        assert client.get("/version").json().keys() == {"version"}
        metrics = client.get("/metrics").text
        assert "vllm:num_requests_running" in metrics and "actscope_engine_metrics_up 1.0" in metrics
        assert all(name in metrics for name in re.findall(r"vllm:\w+", read_dashboard()))
        text = client.get("/metrics", headers={"accept": OPENMETRICS}).text
        families = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]
        assert len({family.name for family in families}) == len(families) > 60
        wanted = {"model": place.model, "input": "x"}
        refused = client.post("/v1/embeddings", json=wanted)
        direct = httpx.post(f"{served.url}/v1/embeddings", json=wanted, trust_env=False)
        assert (refused.status_code, refused.text) == (direct.status_code, direct.text)


def test_a_probe_put_through_the_gateway_scores_the_next_request(client: openai.OpenAI, place: Place) -> None:
    with place.client() as raw:
        width = raw.get("/v1/actscope/info").json()["engine"]["d_model"]
        upload = {"vector": [0.0] * width, "site": "layers.1.resid_post", "bias": 7.0}
        assert raw.put("/v1/actscope/probes/seven", json=upload).status_code == 200
        answer = client.completions.create(model=place.model, prompt="Once", max_tokens=3, extra_body=SCORES)
        found = picture([dumped(answer)])
        assert raw.delete("/v1/actscope/probes/seven").status_code in (200, 204)
    assert {cell for (_, probe), cell in found.cells.items() if probe == "seven" and cell is not None} == {7.0}


def test_a_request_is_kept_by_a_mark_and_by_its_own_option(client: openai.OpenAI, place: Place) -> None:
    options: Any = {"model": place.model, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    marked = picture([dumped(client.completions.create(**options, extra_body=SCORES))])
    with place.client() as raw:
        path = f"/v1/actscope/requests/{marked.request}/mark"
        until(lambda: raw.post(path, json={"why": "odd"}).json().get("rows") == len(marked.ids) - 1)
        before = raw.get("/v1/actscope/recording").json()["marked_requests"]
        client.completions.create(**options, extra_body={"actscope": {"keep": "by itself"}})
        until(lambda: raw.get("/v1/actscope/recording").json()["marked_requests"] == before + 1)


def test_vllm_is_killed_and_started_again(engines: Engines, tmp_path: Path) -> None:
    """What is in flight ends with an error, then 503 with Retry-After, then the new server's scores, on the same port."""
    environment = {"ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME}
    engine = engines.start(
        Served, Configuration(model_path(), environment=environment, arguments={"max_model_len": 2048})
    )
    with gateway(engine) as place, place.client(timeout=120) as client:
        body = {"model": place.model, "messages": MESSAGES, "max_tokens": 1900, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            engine.kill()
            assert '"code":"engine_failed"' in "".join(lines)
        until(lambda: client.get("/health").json()["engine"] == "waiting", 30)
        waiting = client.post("/v1/chat/completions", json=body)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "2")
        again = Served(replace(engine.configuration), engine.directory, None)
        again.port, again.url = engine.port, engine.url
        with again:
            await_engine_for(place, 60)
            answer = client.post("/v1/chat/completions", json=body | {"stream": False, "max_tokens": 6} | SCORES).json()
            check(picture([answer]))


def await_engine_for(place: Place, seconds: float) -> None:
    with place.client() as client:
        until(lambda: client.get("/v1/actscope/info").json()["ring"] is not None, seconds)
