"""Marks through the gateway: what a client of `actscope serve --record` sees, and what is in the recording afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from support.gateway.stage import Picture, chunks, picture
from support.servers import COMMAND, Serving, serving

from actscope.engines.builtin import NAME
from actscope.engines.hf.loading import load
from actscope.recording.reading.recording import Recording


@dataclass
class Stand:
    """A running server that records, a client of it, and where the recording will be."""

    server: Serving
    client: httpx.Client
    path: Path

    def ask(self, content: str, **fields: Any) -> Picture:
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 16,
            "actscope": True,
        }
        return picture(chunks(self.client, body | fields))

    def mark(self, request: str, **body: Any) -> httpx.Response:
        return self.client.post(f"/v1/actscope/requests/{request}/mark", json=body)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys, typer; from actscope.cli.mark import mark; typer.run(mark)"
        command = [COMMAND[0], "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.server.environment)


@pytest.fixture(scope="module")
def kept() -> dict[str, list[int]]:
    """Request -> token ids, of what the tests have marked; looked at when the server has ended."""
    return {}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, kept: dict[str, list[int]]) -> Iterator[Stand]:
    """At the end, the whole recording is compared with plain runs of the model."""
    path = tmp_path_factory.mktemp("marks") / "kept.acts"
    spool = path.with_name("spool")
    options = ["--record", str(path), "--record-sites", "0,1", "--keep-recent", "64MB", "--keep-on-disk", str(spool)]
    with (
        serving(*options, "--trigger", "probe no-such-probe > 3") as server,
        server.place.client(timeout=120) as client,
    ):
        yield Stand(server, client, path)
    _check(path, kept)


def _check(path: Path, kept: dict[str, list[int]]) -> None:
    recording, loaded = Recording.open(path), load(NAME)
    assert recording.complete
    assert sorted(recording.requests) == sorted(kept)  # nothing else
    for request, ids in kept.items():
        with torch.no_grad():
            states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in (0, 1):
            rows = recording.rows(f"layers.{layer}.resid_post", request)
            assert rows.labels["position"].tolist() == list(range(len(ids) - 1))
            assert rows.labels["token_id"].tolist() == ids[:-1]
            np.testing.assert_allclose(rows.values, states[layer + 1][0, :-1].numpy(), rtol=0, atol=1e-4)


def test_a_request_is_kept_by_a_mark_after_its_end(stand: Stand, kept: dict[str, list[int]]) -> None:
    stand.ask("Nobody marks this")
    found = stand.ask("Tell me about a fox in the snow")
    answer = stand.mark(found.request, why="odd")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["state"], told["running"], told["missing"], told["rows"]) == ("kept", False, 0, len(found.ids) - 1)
    assert stand.mark(found.request, why="odd").json() == told
    kept[found.request] = [found.ids[p] for p in sorted(found.ids)]


def test_a_request_is_kept_by_a_mark_while_it_runs(stand: Stand, kept: dict[str, list[int]]) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me a long story"}], "max_tokens": 300, "temperature": 0}
    body |= {"stream": True, "actscope": True, "ignore_eos": True, "return_token_ids": True}
    with stand.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        first = json.loads(next(lines)[6:])
        request = next(c["actscope"]["request"] for c in first["choices"])
        told = stand.mark(request).json()
        rest = list(lines)
    assert told["state"] == "keeping"
    assert told["running"] is True
    assert rest
    whole = stand.client.get(f"/v1/actscope/requests/{request}").json()
    kept[request] = whole["tokens"]["ids"]


def test_the_answers_own_id_marks_its_only_choice_and_not_one_of_several(
    stand: Stand, kept: dict[str, list[int]]
) -> None:
    body = {"prompt": "Once", "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = stand.client.post("/v1/completions", json=body).json()
    told = stand.mark(answer["id"]).json()
    assert told["request"] == answer["id"] + "-0"
    choice = answer["choices"][0]
    kept[told["request"]] = [*choice["prompt_token_ids"], *choice["token_ids"]]
    several = stand.client.post("/v1/completions", json=body | {"n": 2}).json()
    refused = stand.mark(several["id"])
    assert refused.status_code == 404
    assert "2 choices" in refused.json()["error"]["message"]


def test_the_state_of_the_recording_is_reported(stand: Stand) -> None:
    stand.ask("Hello")
    told = stand.client.get("/v1/actscope/recording").json()
    assert told["recording"] is True
    assert told["path"] == str(stand.path)
    assert told["sites"] == ["layers.0.resid_post", "layers.1.resid_post"]
    assert told["flight"]["where"] == str(stand.path.with_name("spool"))
    assert told["flight"]["rows"] > 0
    assert told["flight"]["limit_bytes"] == 64_000_000
    assert told["flight"]["dropped_rows"] == told["kept"]["lost_rows"] == told["flight"]["faults"] == 0
    assert told["failure"] is None
    assert told["triggers"] == [{"rule": "probe no-such-probe > 3", "firings": 0, "probe_loaded": False}]


@pytest.mark.parametrize("request_id", ["nobody", "..", "a b", "x" * 300, "a%2F..%2Fprobes"])
def test_a_request_that_is_not_known_is_a_404(stand: Stand, request_id: str) -> None:
    answer = stand.client.post(f"/v1/actscope/requests/{request_id}/mark")
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{"before": "soon"}, {"after": -1}, {"what": 1}, {"why": "x" * 1001}, [1]])
def test_a_mark_that_cannot_be_understood_is_a_400(stand: Stand, body: Any) -> None:
    answer = stand.client.post("/v1/actscope/requests/nobody/mark", json=body)
    assert answer.status_code == 400


def test_a_mark_needs_the_token(stand: Stand) -> None:
    base = str(stand.client.base_url)
    for method, path in (("POST", "requests/x/mark"), ("GET", "recording")):
        assert httpx.request(method, f"{base}/v1/actscope/{path}").status_code == 401


def test_the_command_line_marks_the_same_requests(stand: Stand, kept: dict[str, list[int]]) -> None:
    found = stand.ask("Tell me about the sea")
    done = stand.command("--last", "--json", "--why", "by the command")
    assert done.returncode == 0, done.stderr
    assert [(m["request"], m["state"]) for m in json.loads(done.stdout)] == [(found.request, "kept")]
    again = stand.command(found.request)
    assert f"{found.request}: {len(found.ids) - 1} positions, kept" in again.stdout
    kept[found.request] = [found.ids[p] for p in sorted(found.ids)]
    assert "no request is running" in stand.command("--all").stdout
    refused = stand.command("nobody")
    assert refused.returncode != 0
    assert "no request 'nobody'" in refused.stderr


def test_an_engine_that_does_not_record_says_so(client: httpx.Client) -> None:
    """The scripted engine has no such routes at all."""
    assert client.get("/v1/actscope/recording").json() == {"recording": False}
    answer = client.post("/v1/actscope/requests/x/mark")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_recording")
