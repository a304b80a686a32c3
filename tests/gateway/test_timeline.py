"""The timeline of real requests: the stamps of a real engine and a real gateway are in order, and explain when tokens came."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.gateway.stage import EngineProcess, Place, Stage, await_scores
from support.metrics.perfetto import read_trace
from support.servers import Serving, serving
from support.waiting import until

from actscope.frames import ROW_META, PassTimes, Span
from actscope.gateway.scores.pass_ledger import PassLedger, timed
from actscope.gateway.scores.token_times import TokenTimes
from actscope.gateway.timeline.send_buffer import SendBuffer
from actscope.metrics.timeline.parts import PARTS
from actscope.ring.host import StepRecord

BODY = {
    "messages": [{"role": "user", "content": "Tell me about a fox in the snow"}],
    "temperature": 0,
    "actscope": True,
}


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def place(served: Serving) -> Place:
    return served.place


def ask(place: Place, **fields: Any) -> str:
    """Read the answer of a streamed request; returns its id."""
    with place.client(timeout=120) as client:
        body = {"stream": True, "max_tokens": 24, **BODY, **fields}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        return response.headers["x-request-id"]


def timeline(place: Place, request: str, **query: int) -> dict[str, Any]:
    with place.client() as client:
        response = client.get(f"/v1/actscope/requests/{request}/timeline", params=query)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


def whole(place: Place, request: str) -> dict[str, Any]:
    """The timeline once every token has left the send buffer, and the engine has said when the last one was drawn."""
    found: dict[str, Any] = {}

    def is_whole() -> bool:
        found.update(timeline(place, request))
        tokens = found["tokens"]
        return len(tokens) == found["completion_tokens"] > 0 and not tokens[-1]["unexplained_ns"]

    until(is_whole)
    return found


def explained(tokens: Sequence[dict[str, Any]]) -> list[float]:
    return [1 - token["unexplained_ns"] / token["gap_ns"] for token in tokens if token["gap_ns"]]


def check(found: dict[str, Any]) -> None:
    """Every gap begins where the one before ends; its parts are in order, and sum to it."""
    cursor = found["tokens"][0]["start_ns"]
    for token in found["tokens"]:
        assert token["start_ns"] == cursor
        assert sum(part["ns"] for part in token["parts"]) + token["unexplained_ns"] == token["gap_ns"]
        for part in token["parts"]:
            assert part["name"] in PARTS and part["start_ns"] >= cursor
            cursor = part["start_ns"] + part["ns"]
        cursor = token["start_ns"] + token["gap_ns"]
        assert token["why"].endswith(".")


def test_the_stamps_of_concurrent_requests_are_in_order_and_explain_their_tokens(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(lambda i: ask(place, max_tokens=12 + 4 * i), range(8)))
    shares: list[float] = []
    for request in requests:
        found = whole(place, request)
        check(found)
        assert found["measured_at"] == "client" and found["state"] == "done"
        first, *_ = found["tokens"]
        assert {"queue", "pass", "sampling"} <= {part["name"] for part in first["parts"]} and "Token 0 came" in first[
            "why"
        ]
        assert [token["index"] for token in found["tokens"]] == list(range(found["completion_tokens"]))
        shares += explained(found["tokens"])
    assert float(np.percentile(shares, 1)) >= 0.99


def test_tokens_drawn_by_one_pass_of_many_requests_name_that_pass(place: Place) -> None:
    found = whole(place, ask(place))
    numbers = [[one["number"] for one in token["passes"] if one["own"]] for token in found["tokens"]]
    assert all(len(own) == 1 for own in numbers[1:])
    assert [own[-1] for own in numbers] == sorted({own[-1] for own in numbers})


def test_a_token_that_waits_for_the_prompt_of_another_request_names_it(place: Place) -> None:
    """The other one comes while the answer streams, and is longer than a pass that runs beside others."""
    long = {"messages": [{"role": "user", "content": "Tell me about a fox in the snow and the sea. " * 45}]}
    with place.client(timeout=120) as client, ThreadPoolExecutor(1) as pool:
        body = {**BODY, "stream": True, "max_tokens": 200, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            lines = response.iter_lines()
            for _ in range(10):
                next(lines)
            other = pool.submit(ask, place, **long, max_tokens=2)
            for _ in lines:
                pass
        other.result()
    found = whole(place, request)
    check(found)
    held_up = [token for token in found["tokens"][1:] if any(not one["own"] for one in token["passes"])]
    waited = [sum(part["ns"] for part in token["parts"] if part["name"] == "other_passes") for token in held_up]
    assert max(waited) > 0
    latest = held_up[waited.index(max(waited))]
    assert sum(one["prompt_rows"] for one in latest["passes"] if not one["own"]) >= 76
    own = {one["number"] for token in found["tokens"] for one in token["passes"] if one["own"]}
    assert not own & {one["number"] for token in held_up for one in token["passes"] if not one["own"]}


def test_an_answer_in_one_piece_is_timed_in_the_engine(place: Place) -> None:
    found = whole(place, ask(place, stream=False))
    check(found)
    assert found["measured_at"] == "engine" and min(explained(found["tokens"])) >= 0.99
    assert not {"delivery", "gateway", "send_buffer"} & {part["name"] for t in found["tokens"] for part in t["parts"]}


def test_a_client_that_reads_slowly_makes_the_sentence_name_the_send_buffer(place: Place) -> None:
    """Its receive buffer takes a few tokens; it reads on when the engine has drawn all."""
    address = urlsplit(place.url)
    body = json.dumps({**BODY, "stream": True, "max_tokens": 150}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((address.hostname, address.port))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {place.token}\r\n"
        )
        slow.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answered = slow.recv(200).decode()
        request = answered.partition("x-request-id: ")[2].partition("\r\n")[0]
        with place.client() as client:
            until(lambda: client.get(f"/v1/actscope/requests/{request}").json()["state"] == "done", 60)
        waiting = timeline(place, request)
        assert len(waiting["tokens"]) < waiting["completion_tokens"]  # what waits has no end yet
        while not answered.endswith("0\r\n\r\n"):
            answered += slow.recv(65536).decode()
    found = whole(place, request)
    check(found)
    latest = max(found["tokens"], key=lambda token: token["gap_ns"])
    assert "lay in the gateway's send buffer, because the client's side had not taken it" in latest["why"]


def test_one_token_can_be_asked_for_and_one_that_is_not_there_is_refused(place: Place) -> None:
    request = ask(place, max_tokens=5)
    found = whole(place, request)
    assert timeline(place, request, token=3)["tokens"] == [found["tokens"][3]]
    assert timeline(place, request, first=1, limit=2)["tokens"] == found["tokens"][1:3]
    with place.client() as client:
        path = f"/v1/actscope/requests/{request}/timeline"
        absent = client.get(path, params={"token": 5})
        assert absent.status_code == 404 and "has no token 5" in absent.json()["error"]["message"]
        assert client.get(path, params={"limit": 5000}).status_code == 400
        assert client.get("/v1/actscope/requests/unknown/timeline").status_code == 404


def test_a_trace_of_live_requests_has_the_timelines_parts_and_the_scores(served: Serving, tmp_path: Path) -> None:
    requests = [ask(served.place, max_tokens=6) for _ in range(2)]
    answers = [whole(served.place, request) for request in requests]
    out = tmp_path / "trace.pftrace"
    chosen = [word for request in requests for word in ("--request", request)]
    said = actscope("metrics", "trace", "--live", *chosen, "--url", served.link, "-o", str(out))
    assert said.returncode == 0, said.stderr
    found = read_trace(out.read_bytes())
    for answer in answers:
        parts = [(one["name"], one["start_ns"], one["ns"]) for token in answer["tokens"] for one in token["parts"]]
        gaps = [s for s in found.named("gaps") if s.path[1] == answer["request"] and s.depth == 1]
        assert [(s.name, s.start_ns, s.end_ns - s.start_ns) for s in gaps] == parts
        scores = [s for s in found.named("scores") if s.path[1] == answer["request"]]
        assert len(scores) >= answer["completion_tokens"] - 1  # the last one is in no pass
        assert [s.path[-1] for s in found.joined(scores[1].ended_flows[0])] == ["passes", "tokens", "scores"]


def actscope(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "actscope", *arguments], capture_output=True, text=True, timeout=60)


def why(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "actscope", "why", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)


def test_why_prints_the_sentence_and_a_picture(served: Serving) -> None:
    request = ask(served.place, max_tokens=6)
    found = whole(served.place, request)
    printed = why(request, "--token", "0", "--url", served.link)
    assert printed.returncode == 0, printed.stderr
    sentence, _, *picture = printed.stdout.splitlines()
    assert sentence == found["tokens"][0]["why"]
    assert len(picture) == len(found["tokens"][0]["parts"]) + 2 and "█" in printed.stdout
    slowest = why("--json", ACTSCOPE_GATEWAY=served.place.url, ACTSCOPE_TOKEN=served.place.token)
    assert json.loads(slowest.stdout)["request"] == request  # the newest
    assert found["tokens"][found["slowest"]]["why"] in why(request, ACTSCOPE_GATEWAY=served.link).stdout


def test_why_says_what_to_do_when_it_gets_no_answer(served: Serving) -> None:
    denied = why("x", "--url", served.place.url, ACTSCOPE_TOKEN="")
    assert denied.returncode == 3 and "the link that the gateway printed" in denied.stderr
    assert "has no token 10000" in why(ask(served.place), "--token", "10000", "--url", served.link).stderr
    assert "does not answer" in why("x", "--url", "http://127.0.0.1:1").stderr
    assert "expected an address" in why("x", "--url", "nowhere").stderr


def test_of_an_engine_that_tells_no_times_only_the_way_through_the_gateway_is_explained(
    shared_stage: Stage, engine: EngineProcess
) -> None:
    scripted = shared_stage.gateway(upstream=engine.card)
    await_scores(scripted)
    request = ask(scripted)
    tokens = timeline(scripted, request)["tokens"]
    assert tokens and all(sum(p["ns"] for p in t["parts"]) + t["unexplained_ns"] == t["gap_ns"] for t in tokens)
    assert {part["name"] for token in tokens for part in token["parts"]} <= {"request", "gateway", "send_buffer"}
    assert tokens[0]["unexplained_ns"] > 0


# What the gateway keeps


def test_a_token_belongs_to_the_last_pass_that_could_draw_it() -> None:
    """A prompt in two passes, single tokens, a pass with drafts of which one was accepted, and a preemption."""
    times = TokenTimes()
    times.see_pass(1, 0, 0)
    times.see_pass(2, 6, 0)  # draws the token at position 10
    times.see_pass(4, 10, 11)
    times.see_pass(5, 11, 12)  # three rows; draws 12 and, by a draft, 13
    times.see_pass(6, 13, 14)
    times.see_pass(8, 0, 15)  # computes 0 .. 14 again after a preemption, in two passes
    times.see_pass(9, 8, 15)
    assert times.first_passes(10) == [1, 2]
    found = {position: times.passes_of(position) for position in range(11, 16)}
    assert found == {11: [4], 12: [5], 13: [5], 14: [6], 15: [8, 9]}


def test_chunks_have_the_times_of_all_their_tokens() -> None:
    times = TokenTimes()
    times.read(11, 100)
    times.read(13, 200)
    times.sent(1, 110)
    assert times.chunk_of(13) is None
    found = [times.chunk_of(position) for position in (10, 11, 12)]
    assert [(c.read_ns, c.sent_ns, c.drained_ns) for c in found if c] == [(100, 110, 0), (200, 0, 0), (200, 0, 0)]
    times.sent(2, 210)
    times.drained(2, 220)
    times.drained(1, 500)
    last = times.chunk_of(12)
    assert last is not None and (last.sent_ns, last.drained_ns) == (210, 220)


def record(number: int, time_ns: int, times: PassTimes, n_rows: int = 1) -> StepRecord:
    spans = (Span("a", 3, n_rows, 0, n_prompt=4),) if n_rows else ()
    return StepRecord(number, time_ns, 0, spans, np.zeros(n_rows, ROW_META), np.zeros((n_rows, 1)), times=times)


def test_the_sampling_of_a_pass_is_taken_from_the_step_that_tells_it() -> None:
    ledger = PassLedger(4)
    ledger.take(record(1, 13, PassTimes(10, 11, 12)))
    ledger.take(record(2, 23, PassTimes(20, 21, 22, 0, 0, 14, 15), 2))
    assert ledger.get(1) == (1, 10, 11, 12, 13, 14, 15, 1, 1, 1)
    ledger.take(record(2, 30, PassTimes(sampling_ns=24, sampled_ns=25), 0))  # an END without rows
    assert ledger.get(2) == (2, 20, 21, 22, 23, 24, 25, 2, 1, 1)
    ledger.take(record(9, 93, PassTimes(90, 91, 92, 0, 0, 84, 85)))  # passes between were not read
    assert ledger.get(8) is None and ledger.get(5) is None
    assert [one.number for one in timed(ledger.between(15, 22))] == [2]
    for number in range(10, 14):
        ledger.take(record(number, 10 * number + 3, PassTimes(10 * number, 10 * number + 1, 10 * number + 2)))
    assert ledger.get(9) is None and [one.number for one in timed(ledger.between(0, 10**6))] == [10, 11, 12, 13]


async def test_a_chunk_is_drained_when_the_bytes_up_to_its_end_have_left() -> None:
    waiting = [300]
    buffer, times = SendBuffer(lambda: waiting[0]), TokenTimes()
    for end in (1, 2, 3):
        times.read(end, end)
        buffer.begin([(times, end)])
        buffer.add(100, [(times, end)])
    buffer._look()
    chunk = times.chunk_of(2)
    assert chunk is not None and chunk.sent_ns and not chunk.drained_ns
    times.read(4, 4)
    buffer.begin([(times, 4)])  # the connection is backed up: from here on it is the client's side
    late = times.chunk_of(3)
    assert late is not None and late.sent_ns
    waiting[0] = 100
    buffer._look()
    assert [bool(c.drained_ns) for c in map(times.chunk_of, range(3)) if c] == [True, True, False]
    waiting[0] = 0
    buffer._look()
    assert all(c.drained_ns for c in map(times.chunk_of, range(3)) if c)
