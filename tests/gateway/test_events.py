"""The event stream of any request: complete, resumable after every event, for any number of watchers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.gateway.stage import (
    EngineProcess,
    Event,
    Picture,
    Place,
    Stage,
    assert_exact,
    chat,
    chunks,
    events,
    picture,
)
from support.waiting import until


def watch(client: httpx.Client, request: str, after: int | None = None) -> list[Event]:
    """All events until the stream closes."""
    headers = {"last-event-id": str(after)} if after else {}
    with client.stream("GET", f"/v1/actscope/requests/{request}/events", headers=headers) as response:
        assert response.status_code == 200
        return list(events(response.iter_lines()))


def put_together(found: list[Event]) -> Picture:
    whole = Picture()
    for event in found:
        if event.kind in ("token", "probe_update"):
            whole.add(event.data)
    return whole


def test_events_hold_the_whole_request(client: httpx.Client) -> None:
    """Tokens, scores, summary and end, in order, with the same content as the client's own stream."""
    own = picture(chunks(client, chat(actscope=True, max_tokens=12)))
    found = watch(client, own.request)
    assert [e.id for e in found] == list(range(1, len(found) + 1))
    assert [e.kind for e in found[-2:]] == ["probe_final", "done"]
    told = put_together(found)
    assert (told.ids, told.cells, told.states) == (own.ids, own.cells, own.states)
    assert found[-1].data == {
        "v": 1,
        "finish_reason": "length",
        "usage": {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18},
    }


def test_the_summary_counts_computed_cells_only(client: httpx.Client) -> None:
    """Maximum, its position, mean and crossings are over computed cells; masked ones do not count."""
    own = picture(chunks(client, chat(actscope=True, max_tokens=12)))
    final = watch(client, own.request)[-2].data
    cells = {p: c for (p, probe), c in own.cells.items() if probe == "danger" and c is not None}
    told = final["probes"]["danger"]
    assert told["argmax"] == max(cells, key=lambda p: cells[p])
    assert told["max"] == pytest.approx(max(cells.values()))
    assert told["mean"] == pytest.approx(sum(cells.values()) / len(cells))
    assert told["over_threshold"] == sum(c >= 0.5 for c in cells.values())
    assert (final["present"], final["computed"]) == (18, 17)


def test_resuming_after_any_event_gives_the_rest_exactly_once(client: httpx.Client) -> None:
    """Whatever the last id that a client saw, the two parts make the same sequence."""
    request = picture(chunks(client, chat(actscope=True, max_tokens=6))).request
    whole = watch(client, request)
    for seen in range(1, len(whole)):
        assert watch(client, request, after=seen) == whole[seen:]
        with client.stream("GET", f"/v1/actscope/requests/{request}/events?after={seen}") as response:
            assert list(events(response.iter_lines())) == whole[seen:]


def test_a_client_that_has_everything_is_told_to_stop(client: httpx.Client) -> None:
    """After the last event a reconnect is answered 204, with which an EventSource stops."""
    request = picture(chunks(client, chat(actscope=True, max_tokens=2))).request
    last = watch(client, request)[-1].id
    assert client.get(f"/v1/actscope/requests/{request}/events?after={last}").status_code == 204


def test_watchers_in_flight_early_and_late_see_the_same(place: Place, engine: EngineProcess) -> None:
    """Two watchers of a running request of a client that asked for no scores, and one afterwards."""
    body = {"stream": True, **chat(max_tokens=10, scripted={"hold_after": 5})}
    with place.client() as own, place.client() as other, ThreadPoolExecutor(2) as pool:
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            request = response.headers["x-request-id"]
            lines = response.iter_lines()
            next(lines)
            until(lambda: other.get(f"/v1/actscope/requests/{request}").json().get("tokens", {}).get("ids", [])[10:])
            first, second = (pool.submit(watch, other, request) for _ in range(2))
            assert other.get(f"/v1/actscope/requests/{request}").json()["state"] == "running"
            engine.release()
            assert "actscope" not in "".join(lines)
        late = watch(other, request)
        assert first.result() == second.result() == late
    whole = put_together(late)
    assert_exact(whole)
    assert whole.letters("joy") == "c" * 15 + "n"


def test_tokens_and_scores_come_while_the_request_runs(place: Place, engine: EngineProcess) -> None:
    """A watcher has every token and the scores of all but the last while the engine is held up."""
    body = {"stream": True, **chat(max_tokens=10, scripted={"hold_after": 5})}
    with place.client() as own, place.client() as other:  # noqa: SIM117
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            path = f"/v1/actscope/requests/{response.headers['x-request-id']}/events"
            live = Picture()
            with other.stream("GET", path) as watching:
                for event in events(watching.iter_lines()):
                    if event.kind in ("token", "probe_update"):
                        live.add(event.data)
                    if len(live.ids) == 11 and live.letters("joy").count("c") == 10 and live.final is None:
                        engine.release()
            response.read()
    assert live.letters("joy") == "c" * 15 + "n"


def test_a_whole_answer_can_be_watched_while_it_is_made(place: Place, engine: EngineProcess) -> None:
    """Without streaming the tokens are known from their rows."""
    body = chat(max_tokens=10, scripted={"hold_after": 5}, content="watch me")
    with place.client() as own, place.client() as other, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(own.post, "/v1/chat/completions", json=body)
        running = until(
            lambda: [r for r in other.get("/v1/actscope/requests").json()["requests"] if r["state"] == "running"]
        )
        request = running[0]["request"]
        until(lambda: other.get(f"/v1/actscope/requests/{request}").json().get("scores", {}).get("rows", [])[12:])
        engine.release()
        assert answer.result().json()["id"] == request
        whole = put_together(watch(other, request))
    assert_exact(whole)


def test_a_request_sent_to_the_engine_directly_can_be_watched(client: httpx.Client, engine: EngineProcess) -> None:
    """Its tokens and scores are known from the ring alone, up to the last token, which is never fed back."""
    with engine.client() as direct:
        answer = direct.post(
            "/v1/chat/completions", json=chat(max_tokens=7, return_token_ids=True), headers={"x-request-id": "direct-1"}
        )
    ids = [*answer.json()["prompt_token_ids"], *answer.json()["choices"][0]["token_ids"]]
    until(lambda: client.get("/v1/actscope/requests/chatcmpl-direct-1").json().get("state") == "done")
    summary = client.get("/v1/actscope/requests").json()["requests"][0]
    assert (summary["request"], summary["source"], summary["prompt_tokens"]) == ("chatcmpl-direct-1", "engine", 6)
    whole = put_together(watch(client, "chatcmpl-direct-1"))
    assert [whole.ids[p] for p in sorted(whole.ids)] == ids[:-1]
    assert_exact(whole)


def test_a_quiet_stream_is_kept_alive(place: Place, engine: EngineProcess) -> None:
    """Comments come while nothing happens."""
    body = {"stream": True, **chat(max_tokens=4, scripted={"hold_after": 2})}
    with place.client() as own, place.client() as other:  # noqa: SIM117
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            with other.stream("GET", f"/v1/actscope/requests/{response.headers['x-request-id']}/events") as watching:
                assert any(line == ": keep-alive" for line in watching.iter_lines())
            engine.release()
            response.read()


def test_forgotten_requests_and_events_answer_410(stage: Stage) -> None:
    """A request that fell out of the bounded log is told apart from one that never was."""
    stage.engine()
    place = stage.gateway(log_requests=2)
    with place.client() as client:
        requests = [picture(chunks(client, chat(actscope=True, max_tokens=2))).request for _ in range(4)]
        answers = [client.get(f"/v1/actscope/requests/{r}/events").status_code for r in requests]
        assert answers == [410, 410, 200, 200]
        assert client.get("/v1/actscope/requests/never/events").status_code == 404
        assert client.get(f"/v1/actscope/requests/{requests[3]}/events?after=999").status_code == 410


def test_a_slow_watcher_delays_no_request(place: Place, engine: EngineProcess) -> None:
    """A watcher that does not read does not delay the request that it watches."""
    body = {"stream": True, **chat(max_tokens=3000, scripted={"hold_after": 1})}
    with place.client() as own, place.client() as other:  # noqa: SIM117
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            with other.stream("GET", f"/v1/actscope/requests/{response.headers['x-request-id']}/events"):
                timer = threading.Timer(0, engine.release)
                timer.start()
                assert "[DONE]" in response.read().decode()[-40:]
                timer.join()


def test_streams_are_bounded(stage: Stage) -> None:
    """One stream too many is answered 429; a closed one makes room."""
    engine = stage.engine()
    place = stage.gateway(max_streams=1)
    body = {"stream": True, **chat(max_tokens=4, scripted={"hold_after": 2})}
    with (
        place.client() as own,
        place.client() as other,
        own.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        path = f"/v1/actscope/requests/{response.headers['x-request-id']}/events"
        with other.stream("GET", path) as watching:
            assert watching.status_code == 200
            refused = other.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        until(lambda: place_for_one_more(other, path))
        engine.release()
        response.read()


def place_for_one_more(client: httpx.Client, path: str) -> bool:
    with client.stream("GET", path) as response:
        return response.status_code == 200
