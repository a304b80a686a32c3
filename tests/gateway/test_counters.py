"""What was lost is counted and shown: in `info`, as metrics, with what to do; and coverage counts what has a value."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.gateway.stage import EngineProcess, Place, Stage, await_engine, chat, chunks, picture
from support.waiting import until

from actscope.counters import Counter, CounterReport, counters_of, summed
from actscope.frames import ROW_META, SCORES, Frame, RowFlag, Span, SpanFlag, Step
from actscope.gateway import GatewaySettings
from actscope.gateway.api.payloads import ChoiceView, coverage
from actscope.gateway.counters.reports import counter_families, sources_of, troubles_of
from actscope.gateway.scores.columns import ScoreColumn
from actscope.gateway.scores.coverage import coverage_of
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.matcher import Matcher
from actscope.gateway.scores.probe_table import table_of
from actscope.gateway.scores.replica import Replica, RingPart
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.scores.request_store import Sessions
from actscope.ring.counter_files import CounterFile
from actscope.ring.host import RingReader, RingSpec, RingWriter
from actscope.serving.telemetry.exposition import rendered

LOG = logging.getLogger("actscope.test")
TWO = table_of(
    {"generation": 1, "probes": [{"slot": 0, "id": "a", "site": "s0"}, {"slot": 1, "id": "b", "site": "s1"}]}
)


# --- a ring that the test writes ---


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    """One of eight rows."""
    writer = RingWriter.create(RingSpec(8, 2, step_capacity=8, span_capacity=8))
    yield writer
    writer.close()


@pytest.fixture
def matcher(ring: RingWriter) -> Iterator[Matcher]:
    card: Any = SimpleNamespace(id="0" * 16, part=0, parts=1, kind="hf", special_ids=[], ring=ring.name, model="m")
    part = RingPart(card, RingReader.attach(ring.name))
    part.tables.of = lambda generation: TWO  # type: ignore[method-assign]  # a table without an engine's file
    found = Matcher(Sessions(GatewaySettings(log_requests=2)), [Replica([part])], TokenTexts.unknown())
    yield found
    found.close()


def put(ring: RingWriter, request: str, first: int, n: int, flags: int = 0, weights: int = 0) -> None:
    """A step with `n` rows of a request; the token at position p is p."""
    meta = np.zeros(n, ROW_META)
    meta["position"] = meta["token_id"] = np.arange(first, first + n)
    meta["flags"] = flags
    step = Step(1, 0, (Span(request, first, n, 0, SpanFlag.FIRST if not first else SpanFlag(0), 2),), meta, 0, weights)
    ring.write(step, [Frame(SCORES, np.ones((n, 2), np.float32))])


def values(matcher: Matcher) -> dict[str, int]:
    return {one.name: one.value for one in summed(matcher.reports())}


def test_rows_that_the_engine_could_not_write_and_that_were_read_too_late_are_two_counts(
    ring: RingWriter, matcher: Matcher
) -> None:
    put(ring, "r", 0, 9)
    matcher.drain()
    for first in range(9, 9 + 4 * 6, 4):
        put(ring, "r", first, 4)
    matcher.drain()
    found = values(matcher)
    assert (found["reader_dropped_rows"], found["reader_missed_rows"], found["reader_rows"]) == (9, 16, 8)
    assert {one.name: one.value for one in counters_of(ring.stats())} == {
        "ring_steps": 7,
        "ring_rows": 24,
        "ring_dropped_rows": 9,
    }
    told = troubles_of(matcher.reports())
    assert [one.name for one in told] == ["reader_missed_steps", "reader_missed_rows", "reader_dropped_rows"]
    assert all(one.todo and one.help for one in told)


def test_rows_after_the_answer_are_late_if_a_client_could_have_had_them(ring: RingWriter, matcher: Matcher) -> None:
    """Not those of tokens that nobody has seen, nor those of a request that was cancelled."""
    for request, state in (("done", "done"), ("cancelled", "aborted")):
        log = matcher.new_log(request, request, "m", follows_rows=False)
        matcher._sessions.add(log)
        log.set_prompt([0, 1])
        log.add_tokens([2])
        put(ring, request, 0, 1)
        matcher.drain()
        log.finish(state, "stop")  # type: ignore[arg-type]
        put(ring, request, 1, 3)
        put(ring, request, 4, 1, RowFlag.AFTER_EOS)
        matcher.drain()
    found = values(matcher)
    assert found["match_late_rows"] == 2, "positions 1 and 2 of the one that is done"
    assert found["match_spurious_rows"] == 3, "its position 3, and the one after the end of each"
    assert found["match_unclaimed_rows"] == 3, "what was cancelled"
    assert (found["requests_done"], found["requests_aborted"], found["requests_incomplete"]) == (1, 1, 1)
    assert matcher.counts().late_rows == 2


def test_requests_that_had_to_make_room_are_counted(ring: RingWriter, matcher: Matcher) -> None:
    """The log holds two: running ones of other clients are forgotten last, and that is a loss."""
    for n in range(4):
        put(ring, f"r{n}", 0, 1)
        matcher.drain()
    counts = matcher._sessions.counts()
    assert (counts.requests, counts.evicted, counts.evicted_running) == (2, 0, 2)


# --- coverage ---


def log_with(cells: np.ndarray, present: int) -> RequestLog:
    log = RequestLog("r")
    log.set_prompt(list(range(present)))
    if len(cells):
        log.take_rows(0, np.arange(len(cells)), cells.astype(np.float32), TWO.columns, 0)
    log.finish("done", "stop")
    return log


def test_a_position_of_which_no_probe_has_a_value_is_not_computed() -> None:
    """A model whose taps never ran: its rows came, and all their cells are empty. The reason is said in words."""
    log = log_with(np.full((17, 2), np.nan), 18)
    payload = ChoiceView(log, None, True).payload(final=True)
    assert payload is not None
    final = payload["final"]
    assert (final["present"], final["computed"], final["missing_cells"]) == (18, 0, 36)
    assert len(final["why"]) == 2
    assert "a at s0: no value at any position: the tap did not run (model_tap_faults)" in final["why"][0]


def test_coverage_is_that_of_the_probes_that_were_asked_for() -> None:
    cells = np.ones((17, 2))
    cells[:, 1] = np.nan
    log = log_with(cells, 18)
    every, one = (coverage_of(log.scores, log.present, wanted) for wanted in (None, ("b",)))
    assert (every.computed, every.missing_cells, len(every.why)) == (17, 19, 1)
    assert (one.computed, one.missing_cells, len(one.why)) == (0, 18, 1)
    assert "b at s1" in every.why[0]


def test_whole_coverage_gives_no_reasons() -> None:
    """All but the last position, whose token was never fed back."""
    found = coverage_of(log_with(np.ones((17, 2)), 18).scores, 18)
    assert (found.computed, found.missing_cells, found.why) == (17, 2, ())


def test_missing_rows_and_cells_are_told_apart() -> None:
    cells = np.ones((10, 2))
    cells[3:5, 0] = np.nan
    found = coverage_of(log_with(cells, 14).scores, 14)
    assert (found.computed, found.missing_cells) == (10, 10)
    assert found.why[0].startswith("3 positions have no row")
    assert found.why[1].startswith("a at s0: no value at 2 of 10 positions")
    assert coverage_of(log_with(np.ones((0, 2)), 5).scores, 5).why[0].startswith("no row of this request has come")


def test_reasons_are_few() -> None:
    probes = [{"slot": n, "id": f"p{n}", "site": f"s{n}"} for n in range(40)]
    columns = table_of({"generation": 1, "probes": probes}).columns
    log = RequestLog("r")
    log.set_prompt([0, 1])
    log.take_rows(0, np.arange(1), np.full((1, 40), np.nan, np.float32), columns, 0)
    log.finish("done", "stop")
    why = coverage_of(log.scores, log.present).why
    assert len(why) == 9 and why[-1] == "and 32 more reasons of this kind"


# --- a gateway ---


def metrics(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Values by name and source, as Prometheus reads them, summed over engines."""
    answer = client.get("/v1/actscope/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, sample.labels.get("source", "")
            found[key] = found.get(key, 0) + sample.value
    return found


def test_info_and_metrics_say_the_same(client: httpx.Client) -> None:
    """All counters of the gateway; requests and rows are those that there were."""
    before = metrics(client)
    found = picture(chunks(client, chat(actscope=True, max_tokens=4)))
    assert found.final is not None
    after = metrics(client)
    rows, done = ("actscope_reader_rows_total", "gateway"), ("actscope_requests_done_total", "gateway")
    assert after[rows] - before[rows] == found.final["computed"]
    assert after[done] - before[done] == 1
    assert after["actscope_engine_up", ""] == after["actscope_build_info", ""] == 1
    info = client.get("/v1/actscope/info").json()
    shown = {name: value for source in info["counters"] for name, value in source["values"].items()}
    assert {f"actscope_{name}_total" for name in shown} <= {name for name, _ in after} | {
        f"actscope_{name}_total" for name in ("log_requests", "log_in_flight")
    }
    assert shown["reader_rows"] == after[rows] == info["ring"]["rows"]
    assert info["engine"]["state"] == "up"


def test_metrics_need_the_token(place: Place) -> None:
    assert httpx.get(f"{place.url}/v1/actscope/metrics", trust_env=False).status_code == 401


def test_what_an_engines_processes_publish_is_shown_with_what_to_do(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a process that has died since, and of counters that this version has never heard of."""
    engine = stage.engine()
    place = stage.gateway()
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(stage.directory))
    lost = Counter("model_new_kind_of_rows", 12, "loss", 'Rows that "went" missing.\nAll of them.', "Look for them.")
    CounterFile(engine.card, "model", lambda: [lost, Counter("model_passes", 5)], part=0, log=LOG).publish()
    (stage.directory / f"counters-{engine.card}-sidecar.json").write_text("{")
    with place.client() as client:
        info = client.get("/v1/actscope/info").json()
        assert {"source": "model", "engine": engine.card, "part": 0} | {
            "values": {"model_new_kind_of_rows": 12, "model_passes": 5}
        } in info["counters"]
        assert [t for t in info["troubles"] if t["name"].startswith("model")] == [
            {"name": lost.name, "value": 12, "kind": "loss", "help": lost.help, "todo": "Look for them."}
        ]
        assert metrics(client)["actscope_model_new_kind_of_rows_total", "model"] == 12


def test_late_rows_are_counted_and_told(stage: Stage) -> None:
    """Rows that come after the gateway has stopped waiting: the answer says which are missing, `info` that they came late."""
    stage.engine()
    place = stage.gateway(row_grace_seconds=0.01)
    with place.client() as client:
        found = picture(chunks(client, chat(actscope=True, max_tokens=6, scripted={"late_rows": 0.5})))
        assert found.final is not None and found.final["computed"] == 0
        assert "no row of this request has come from the engine" in found.final["why"][0]
        troubles = until(lambda: _late(client), what="the rows that come late")
        assert troubles == found.final["present"] - 1
        assert client.get("/v1/actscope/info").json()["ring"]["late_rows"] == troubles
        assert metrics(client)["actscope_requests_incomplete_total", "gateway"] == 1


def _late(client: httpx.Client) -> int:
    told = {one["name"]: one["value"] for one in client.get("/v1/actscope/info").json()["troubles"]}
    return int(told.get("match_late_rows", 0))


def test_an_engine_that_dies_is_counted_and_its_counts_are_kept(stage: Stage) -> None:
    """After it has been started again, nothing that was counted before is forgotten."""
    first = stage.engine()
    place = stage.gateway()
    with place.client() as client:
        chunks(client, chat(actscope=True, max_tokens=4))
        rows = metrics(client)["actscope_reader_rows_total", "gateway"]
        os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
        until(lambda: client.get("/health").json()["engine"] == "waiting")
        assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 503
        stage.engine()
        await_engine(place)
        chunks(client, chat(actscope=True, max_tokens=4))
        after = metrics(client)
    assert after["actscope_upstream_losses_total", "gateway"] == 1
    assert after["actscope_upstream_connections_total", "gateway"] == 2
    assert after["actscope_answers_not_up_total", "gateway"] == 1
    assert after["actscope_reader_rows_total", "gateway"] == 2 * rows


def test_who_was_turned_away_is_counted(stage: Stage) -> None:
    """Without a token, with a path that is not there, and one too many."""
    engine: EngineProcess = stage.engine()
    place = stage.gateway(max_in_flight=1)
    with place.client() as client:
        assert httpx.get(f"{place.url}/v1/models", trust_env=False).status_code == 401
        assert client.get("/v1/actscope/requests/nothing").status_code == 404
        body = {"stream": True, **chat(max_tokens=4, scripted={"hold_after": 1})}
        with client.stream("POST", "/v1/chat/completions", json=body):
            assert client.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 429
            engine.release()
        found = metrics(client)
    counts = {name: found[f"actscope_answers_{name}_total", "gateway"] for name in ("denied", "refused", "busy")}
    assert counts == {"denied": 1, "refused": 1, "busy": 1}


def test_sources_of_the_same_process_are_one_entry() -> None:
    reports = [
        CounterReport("gateway", [Counter("a", 1)]),
        CounterReport("gateway", [Counter("a", 2), Counter("b", 3)]),
    ]
    [source] = sources_of(reports)
    assert (source.values, source.engine) == ({"a": 3, "b": 3}, None)
    text, _ = rendered(counter_families(reports, engine_is_up=False), "")
    assert text.count(b"actscope_a_total{") == 1


def test_a_runtime_directory_that_is_gone_takes_no_answer_with_it(stage: Stage) -> None:
    """The engine's counters are left out then."""
    stage.engine()
    place = stage.gateway()
    directory = Path(stage.directory)
    with place.client() as client:
        directory.chmod(0o755)
        assert client.get("/v1/actscope/metrics").status_code == 200
        directory.chmod(0o700)


def test_a_request_says_which_versions_of_the_weights_computed_it(ring: RingWriter, matcher: Matcher) -> None:
    """As after RLHF's updates in the middle of a request. One that ran under the first weights alone says nothing."""
    for request in ("before", "during"):
        matcher._sessions.add(matcher.new_log(request, request, "m", follows_rows=True))
        put(ring, request, 0, 4)
    for first, version in ((4, 2), (5, 2), (6, 3)):
        put(ring, "during", first, 1, weights=version)
    matcher.drain()
    before, during = (matcher._sessions.get(request) for request in ("before", "during"))
    assert before is not None and "weights" not in coverage(before)
    assert during is not None and coverage(during)["weights"] == [(4, 2), (6, 3)]


@given(st.lists(st.sampled_from("cnkx"), max_size=6), st.integers(0, 2))
def test_the_usual_case_of_coverage_is_counted_as_all_others_are(rows: list[str], missing: int) -> None:
    """c: computed; n: no row; k: from the cache; x: one of two values is missing. `missing` positions have no entry at all."""
    scores = ScoreColumn()
    for row in rows:
        if row == "n":
            scores.append_missing(TWO.columns, 1)
        else:
            values = np.array([[1.0, np.nan if row == "x" else 2.0]], np.float32)
            scores.append(TWO.columns, values, b"\x02" if row == "k" else b"\x01")
    found = coverage_of(scores, len(rows) + missing)
    assert (found.present, found.computed) == (len(rows) + missing, sum(row != "n" for row in rows))
    assert found.cached == rows.count("k")
    if any(row != "n" for row in rows):
        assert found.missing_cells == 2 * (missing + rows.count("n")) + rows.count("x")
