"""Requests of the real engine are kept when they are marked: their rows are those of a plain run, and nobody else's."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from support.hf.harness import Harness, hidden_states, random_probes, random_prompts
from support.hf.tiny import tiny

from actscope.engines.hf.__main__ import open_recording
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.server import Mailboxes, create_app
from actscope.engines.hf.settings import EngineSettings
from actscope.errors import CodecError, RecordingError, RecordingPoisoned, SettingsError, SiteError
from actscope.frames import RowFlag, TeeSink
from actscope.recording.flight.marks import MarkResult
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.reading.recording import Recording
from actscope.sites import select

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny("llama")


def settings(path: Path, **fields: Any) -> EngineSettings:
    asked = {"record_sites": "all"} | fields
    return EngineSettings(model="tiny", card_id="0" * 16, record=str(path), **asked)


@contextmanager
def recording(
    model: LoadedModel, path: Path, options: dict[str, Any] | None = None, **fields: Any
) -> Iterator[tuple[Harness, FlightRecorder]]:
    """An engine whose steps go to a list and to a flight recorder."""
    asked = settings(path, **fields)
    flight = open_recording(asked, model)
    with Harness(
        model, probes=random_probes(), on_table=lambda _, table: flight.learn(table), **(options or {})
    ) as run:
        run.engine._sink = TeeSink((run.sink, flight))
        run.engine.keep_rows(select(asked.record_sites, model.n_layers)).result()
        yield run, flight
    flight.close()


def check(path: Path, model: LoadedModel, request: str, ids: list[int], positions: list[int] | None = None) -> None:
    """The recording has these positions of the request (all but the last token if not said), each with its own row."""
    found = Recording.open(path)
    expected = hidden_states(model, ids)
    wanted = list(range(len(ids) - 1)) if positions is None else positions
    for layer in range(model.n_layers - 1):  # transformers gives the last block's output after the final norm
        rows = found.rows(f"layers.{layer}.resid_post", request)
        assert rows.labels["position"].tolist() == wanted
        assert rows.labels["token_id"].tolist() == [ids[p] for p in wanted]
        np.testing.assert_allclose(rows.values, expected[layer + 1][wanted], rtol=0, atol=TOLERANCE[model.dtype])


@pytest.mark.parametrize("home", ["memory", "disk"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_mark_after_generation_keeps_rows_that_equal_a_plain_run_at_every_position(
    tmp_path: Path, dtype: torch.dtype, home: str
) -> None:
    loaded, prompts = tiny("llama", dtype), random_prompts((5, 30, 11, 40))
    flight_dir = str(tmp_path / "spool") if home == "disk" else ""
    options = dict(max_step_tokens=64, chunk_tokens=16)
    with recording(loaded, tmp_path / "r", options, flight_dir=flight_dir) as (run, flight):
        run.run(prompts)
        for name in ("r1", "r2"):
            answer = flight.mark(name, "by hand").result()
            assert answer == MarkResult(name, "kept", False, len(prompts[name]) + 11)
    for name in ("r1", "r2"):
        check(tmp_path / "r", loaded, name, [*prompts[name], *run.ids(name)])
    found = Recording.open(tmp_path / "r")
    assert sorted(found.requests) == ["r1", "r2"]  # the others are forgotten
    assert found.sites == tuple(f"layers.{i}.resid_post" for i in range(4))
    assert found.info["model"]["name"] == "tiny/llama"
    summary = found.request("r1")
    assert (summary.ended, summary.n_prompt, summary.computed, summary.present) == (True, 30, 41, 42)
    flags = found.labels("r1")["flags"]
    assert (flags == RowFlag.PREFILL).sum() == 30
    assert found.texts[prompts["r1"][0]] == loaded.tokenizer.decode([prompts["r1"][0]])


def test_a_mark_in_mid_generation_keeps_what_was_and_what_comes(model: LoadedModel, tmp_path: Path) -> None:
    prompts, answers = random_prompts((9, 21, 14)), []
    with recording(model, tmp_path / "r") as (run, flight):
        run.engine._sink = run.sink
        run.after_step(9, lambda: answers.append(flight.mark("r1", "now")))
        run.engine._sink = TeeSink((flight, run.sink))
        run.run(prompts, max_tokens=30)
    until_then = sum(
        s.n_rows for step, _ in run.sink.steps if step.number <= 9 for s in step.spans if s.request == "r1"
    )
    assert answers[0].result() == MarkResult("r1", "keeping", True, until_then)
    assert 21 <= until_then < 50
    check(tmp_path / "r", model, "r1", [*prompts["r1"], *run.ids("r1")])
    assert Recording.open(tmp_path / "r").requests == ["r1"]


def test_a_trigger_keeps_exactly_the_window_that_it_names(model: LoadedModel, tmp_path: Path) -> None:
    """The threshold is chosen so that one generated token of one request is over it, by the scores themselves."""
    prompts = random_prompts((12, 17, 9))
    with Harness(model, probes=random_probes()) as run:
        run.run(prompts, max_tokens=40)
    column = 4  # identity1
    scores = {name: run.scores(name)[:, column] for name in prompts}
    name, position = max(
        ((n, p) for n in prompts for p in range(len(prompts[n]) + 8, len(scores[n]) - 8)),
        key=lambda at: scores[at[0]][at[1]],
    )
    rest = [
        s for n in prompts for p, s in enumerate(scores[n]) if (n, p) != (name, position) and s < scores[name][position]
    ]
    threshold = float(max(rest) + scores[name][position]) / 2
    hits = {n: np.flatnonzero(scores[n] > threshold).tolist() for n in prompts}
    rule = f"probe identity1 > {threshold!r} before 6 tokens after 4 tokens"
    with recording(model, tmp_path / "r", triggers=(rule,)) as (run, _):
        run.run(prompts, max_tokens=40)
    found = Recording.open(tmp_path / "r")
    for request in prompts:
        last = len(scores[request]) - 1
        wanted = sorted({p for hit in hits[request] for p in range(max(0, hit - 6), min(last, hit + 4) + 1)})
        if wanted:
            check(tmp_path / "r", model, request, [*prompts[request], *run.ids(request)], wanted)
        else:
            assert request not in found.requests
    assert f"at position {position}" in " ".join(mark.why for mark in found.marks if mark.request == name)


def test_a_sample_keeps_its_share_from_beginning_to_end(model: LoadedModel, tmp_path: Path) -> None:
    prompts = random_prompts([4 + i % 5 for i in range(24)])
    with recording(model, tmp_path / "r", sample=0.5) as (run, _):
        run.run(prompts, max_tokens=4)
    chosen = Recording.open(tmp_path / "r").requests
    assert 4 < len(chosen) < 20
    for name in chosen:
        check(tmp_path / "r", model, name, [*prompts[name], *run.ids(name)])
    with recording(model, tmp_path / "again", sample=0.5) as (run, _):
        run.run(prompts, max_tokens=4)
    assert sorted(Recording.open(tmp_path / "again").requests) == sorted(chosen)


def test_a_server_that_starts_again_goes_on_with_its_recording(model: LoadedModel, tmp_path: Path) -> None:
    prompts = random_prompts((9, 12))
    ids = {}
    for name, prompt in prompts.items():
        with recording(model, tmp_path / "r") as (run, flight):
            run.run({name: prompt})
            flight.mark(name).result()
            ids[name] = [*prompt, *run.ids(name)]
    assert Recording.open(tmp_path / "r").requests == ["r0", "r1"]
    for name in prompts:
        check(tmp_path / "r", model, name, ids[name])


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"record_sites": "9"}, SiteError, "layers 0 to 3"),
        ({"record_codec": "zip"}, CodecError, "zip"),
        ({"triggers": ("probe d > ",)}, SettingsError, "expected a number"),
        ({"sample": 2.0}, SettingsError, "between 0 and 1"),
        ({"record_sites": "0"}, RecordingError, "its sites are"),
        ({"flight_bytes": 5}, SettingsError, "1 MiB"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_with_the_reason(
    model: LoadedModel, tmp_path: Path, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    open_recording(settings(tmp_path / "r"), model).close()
    asked = settings(tmp_path / "r")
    with pytest.raises(error, match=said):
        open_recording(_changed(asked, fields), model)
    open_recording(asked, model).close()  # nothing is left locked


def _changed(asked: EngineSettings, fields: dict[str, Any]) -> EngineSettings:
    import msgspec

    return msgspec.structs.replace(asked, **fields)


def test_a_disk_that_fails_does_not_reach_the_answers(model: LoadedModel, tmp_path: Path) -> None:
    prompts = random_prompts((9, 21, 14))
    with Harness(model, probes=random_probes()) as plain:
        plain.run(prompts)
    with recording(model, tmp_path / "r", sample=1.0) as (run, flight):
        flight.recorder._messages.fail(RecordingPoisoned("no space left on device"))
        run.run(prompts)
        flight.settle()
        told = flight.describe()
    assert {name: run.ids(name) for name in prompts} == {name: plain.ids(name) for name in prompts}
    assert told["failure"] == "no space left on device"
    assert told["kept"]["lost_rows"] == told["flight"]["rows"] == sum(len(p) + 11 for p in prompts.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_is_reported_and_every_answer_comes(model: LoadedModel, small_disk: Path) -> None:
    """With three megabytes of rows for a disk of one, acknowledged rows are readable and the others are counted."""
    prompts = random_prompts((400,) * 8)
    with recording(model, small_disk / "r", sample=1.0, record_codec="none") as (run, flight):
        run.run(prompts)
        assert flight.settle().faults == 0
        with pytest.raises(RecordingPoisoned):
            flight.recorder.flush()
        flight.mark("r0", "once more").result()
        run.run({"later": prompts["r0"]})
        flight.settle()
        told = flight.describe()
        written = flight.recorder.stats().written_rows
    assert len(run.ids("later")) == 12
    assert told["failure"] is not None and "space" in told["failure"]
    assert told["kept"]["lost_rows"] >= 411
    assert Recording.open(small_disk / "r").n_rows >= written


def test_rows_are_only_kept_by_the_taps_when_recording_is_asked_for(model: LoadedModel) -> None:
    with Harness(model, probes=random_probes()) as run:
        run.run(random_prompts((5,)))
        assert run.engine._taps._keepers == []


# --- the engine's own routes -----------------------------------------------------------------------------------------------


@pytest.fixture
async def client(model: LoadedModel, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An engine that records, runs one request at a time, and forgets after a megabyte."""
    from actscope.engines.hf.engine import EngineOptions

    flight = open_recording(settings(tmp_path / "r", flight_bytes=1 << 20), model)
    mailboxes = Mailboxes()
    engine = Engine(model, sink=flight, deliver=mailboxes.deliver, options=EngineOptions(max_batch=1)).start()
    engine.keep_rows(select("all", 4)).result()
    async with _client(create_app(engine, mailboxes, flight)) as client:
        yield client
    engine.close()
    flight.close()


def _client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine")


async def ask(client: httpx.AsyncClient, name: str, n: int = 8, max_tokens: int = 4) -> str:
    body = {"prompt": [97] * n, "max_tokens": max_tokens, "ignore_eos": True}
    answer = await client.post("/v1/completions", json=body, headers={"X-Request-Id": name})
    assert answer.status_code == 200
    return f"cmpl-{name}-0"


async def test_a_mark_over_http_says_what_it_keeps(client: httpx.AsyncClient, tmp_path: Path) -> None:
    request = await ask(client, "mine")
    answer = await client.post(f"/v1/actscope/requests/{request}/mark", json={"why": "odd", "before": "5 tokens"})
    assert answer.status_code == 200
    told = answer.json()
    assert told == {
        "request": request, "state": "kept", "running": False, "rows": 6, "forgotten": [], "dropped": [], "missing": 0,
    }  # fmt: skip
    told = (await client.get("/v1/actscope/recording")).json()
    assert told["recording"] is True
    assert told["path"] == str(tmp_path / "r")
    assert told["flight"]["rows"] == 11
    assert (told["marks"], told["marked_requests"], told["failure"]) == (1, 1, None)


async def test_marks_that_cannot_be_are_refused_with_a_status_of_their_own(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/v1/actscope/requests/nobody/mark")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")
    request = await ask(client, "old")
    for i in range(3):
        await ask(client, f"other-{i}", n=400)
    late = await client.post(f"/v1/actscope/requests/{request}/mark")
    assert (late.status_code, late.json()["error"]["code"]) == (410, "gone")
    assert "all 11 of its positions" in late.json()["error"]["message"]
    for body, said in (({"before": "soon"}, "expected e.g. 20 tokens"), ({"what": 1}, "what"), ({"why": 5}, "why")):
        bad = await client.post(f"/v1/actscope/requests/{request}/mark", json=body)
        assert bad.status_code == 400
        assert said in bad.json()["error"]["message"]


async def test_the_last_request_can_be_marked_without_its_name(client: httpx.AsyncClient) -> None:
    nothing = await client.post("/v1/actscope/recording/marks", json={"which": "running"})
    assert nothing.json() == {"marks": []}
    request = await ask(client, "mine")
    last = await client.post("/v1/actscope/recording/marks", json={"which": "last"})
    assert [mark["request"] for mark in last.json()["marks"]] == [request]


async def test_without_a_recording_marks_are_refused_and_the_server_says_so(model: LoadedModel) -> None:
    mailboxes = Mailboxes()
    with Harness(model) as run:
        async with _client(create_app(run.engine, mailboxes)) as client:
            for path in ("requests/x/mark", "recording/marks"):
                answer = await client.post(f"/v1/actscope/{path}")
                assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_recording")
                assert "--record DIR" in answer.json()["error"]["message"]
            assert (await client.get("/v1/actscope/recording")).json() == {"recording": False}


async def test_a_request_that_still_waits_for_its_first_step_can_be_marked(model: LoadedModel, tmp_path: Path) -> None:
    with recording(model, tmp_path / "r", {"max_batch": 1}) as (run, flight):
        async with _client(create_app(run.engine, Mailboxes(), flight)) as client:
            run.submit("first", [1, 2, 3], max_tokens=400)
            run.wait_tokens("first", 1)
            run.submit("second", [4, 5, 6])
            answer = await client.post("/v1/actscope/requests/second/mark")
            assert answer.json()["state"] == "pending"
            run.engine.abort("first")
            run.wait_end("second")
    check(tmp_path / "r", model, "second", [4, 5, 6, *run.ids("second")])
    assert Recording.open(tmp_path / "r").requests == ["second"]


async def test_windows_over_http_may_be_numbers_of_tokens(model: LoadedModel, tmp_path: Path) -> None:
    with recording(model, tmp_path / "r") as (run, flight):
        async with _client(create_app(run.engine, Mailboxes(), flight)) as client:
            run.run({"a": [1, 2, 3]})
            answer = await client.post("/v1/actscope/requests/a/mark", json={"before": 3, "after": 1})
            assert answer.json()["rows"] == 4
    check(tmp_path / "r", model, "a", [1, 2, 3, *run.ids("a")], [10, 11, 12, 13])
