"""The plan, the pace and the texts of a replay, each by itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.recordings.made import step_of
from support.recordings.replayed import SITES, probe, record_by_hand, token_by_token
from support.waiting import until

from actscope.engines.builtin import model_path
from actscope.engines.replay import pace
from actscope.engines.replay.engine import ReplayEngine
from actscope.engines.replay.facts import recorded_model
from actscope.engines.replay.plan import ReplayPlan, shown_name
from actscope.engines.replay.settings import ReplaySettings
from actscope.engines.replay.texts import texts_of
from actscope.errors import RecordingError, SettingsError
from actscope.frames import SpanFlag
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.recording.reading.recording import Recording
from actscope.ring.host import RingReader

S = 1_000_000_000


def test_pauses_between_requests_are_shortened_and_those_inside_of_one_are_kept(tmp_path: Path) -> None:
    """A clock that starts again after a reboot counts as no pause."""
    times = {1: 5 * S, 2: 8 * S, 3: 9 * S, 4: 1000 * S, 5: 1001 * S, 6: 2 * S, 7: 3 * S}
    requests = ["a", "a", "a", "b", "b", "c", "c"]
    steps = [
        step_of(n, [(requests[n - 1], requests[: n - 1].count(requests[n - 1]), 1)], time_ns=at)
        for n, at in times.items()
    ]
    plan = ReplayPlan(Recording.open(record_by_hand(tmp_path / "run", steps)), idle_seconds=0.5)
    assert [step.due_ns / S for step in plan.steps] == [0, 3, 4, 4.5, 5.5, 5.5, 6.5]
    assert [one.id for one in plan.requests] == ["a", "b", "c"]


def test_spans_are_runs_of_positions_and_a_request_ends_where_its_last_row_is(tmp_path: Path) -> None:
    steps = [step_of(1, [("a", 0, 2), ("a", 7, 2), ("b", 0, 1)]), step_of(2, [("b", 1, 1), ("a", 9, 1)])]
    plan = ReplayPlan(Recording.open(record_by_hand(tmp_path / "run", steps)))
    found = [[(s.request, s.first_position, s.n_rows, s.offset, s.flags) for s in step.spans] for step in plan.steps]
    first, end, none = SpanFlag.FIRST, SpanFlag.END, SpanFlag(0)
    assert found == [
        [("a", 0, 2, 0, first), ("a", 7, 2, 2, none), ("b", 0, 1, 4, first)],
        [("b", 1, 1, 0, end), ("a", 9, 1, 1, end)],
    ]
    step = plan.step(plan.steps[0], time_ns=7, generation=3)
    assert step.meta["position"].tolist() == [0, 1, 7, 8, 0]
    assert step.meta["span"].tolist() == [0, 0, 1, 1, 2]
    assert (step.number, step.time_ns, step.generation, step.n_rows) == (1, 7, 3, 5)


def test_a_request_without_a_known_prompt_has_the_rows_that_were_prefilled_and_one_at_least(tmp_path: Path) -> None:
    """The page shows no request whose prompt's length is unknown; the first token is never one that the model drew."""
    flagged = step_of(1, [("flagged", 0, 6)], n_prompt=4)
    flagged = replace(flagged, spans=tuple(replace(span, n_prompt=0) for span in flagged.spans))
    bare = step_of(2, [("bare", 0, 3)], n_prompt=0)
    plan = ReplayPlan(Recording.open(record_by_hand(tmp_path / "run", [flagged, bare])))
    assert [step.spans[0].n_prompt for step in plan.steps] == [4, 1]


def test_a_request_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    recording = Recording.open(record_by_hand(tmp_path / "run", token_by_token("here", 5)))
    with pytest.raises(RecordingError, match="no request 'gone'; it has 1: here"):
        ReplayPlan(recording, ["gone"])
    empty = Recording.open(record_by_hand(tmp_path / "empty", []))
    with pytest.raises(RecordingError, match="nothing to replay"):
        ReplayPlan(empty)


def test_names_that_no_ring_holds_are_cut_and_stay_different() -> None:
    long, other = "ä" * 100 + "1", "ä" * 100 + "2"
    assert shown_name(long) != shown_name(other)
    assert len(f"{shown_name(long)}~1000000".encode()) <= 120
    assert shown_name("r1") == "r1"


def _always(text: str, ids: Sequence[int]) -> list[str]:
    """A decoder that gives every id the same text."""
    return [text] * len(ids)


@pytest.mark.parametrize("speed", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_cannot_be_is_refused(speed: float) -> None:
    with pytest.raises(SettingsError, match="speed"):
        ReplaySettings(speed=speed)


def test_recorded_time_passes_at_the_speed_asked_for(tmp_path: Path) -> None:
    """0.4 s at speed 2 are 0.2 s, and the ring has the steps no sooner."""
    steps = [replace(s, time_ns=n * S // 10) for n, s in enumerate(token_by_token("a", 8))]
    recording = Recording.open(record_by_hand(tmp_path / "run", steps))
    with ReplayEngine(recording, ReplaySettings(speed=2.0)) as engine:
        reader = RingReader.attach(engine.card.ring, from_oldest=True)
        begin = time.monotonic()
        engine.start()
        until(lambda: engine.stats().rounds == 1)
        took = time.monotonic() - begin
        batch = reader.read()
        reader.close()
    assert batch is not None and batch.steps[-1].time_ns - batch.steps[0].time_ns >= 0.19 * S
    assert took >= 0.19


def test_no_lap_of_the_ring_is_shorter_than_it_may_be_where_no_reader_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,997 steps through a ring of 1,024 at 0.2 s a lap take 2.9 laps, less the one breath that is let through at once."""
    monkeypatch.setattr(pace, "LAP_S", 0.2)
    recording = Recording.open(record_by_hand(tmp_path / "run", token_by_token("a", 3000), sites=SITES[:1]))
    with ReplayEngine(recording, ReplaySettings(speed=0, ring_rows=1024)) as engine:
        begin = time.monotonic()
        engine.start()
        until(lambda: engine.stats().rounds == 1)
        assert time.monotonic() - begin >= 0.2 * 2997 / 1024 - 2 * pace.BREATH_S


def test_a_known_reader_that_is_slow_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay waits for a reader that looks every 20 ms at a ring that would be lapped in 1 ms."""
    monkeypatch.setattr(pace, "LAP_S", 1e-3)
    recording = Recording.open(record_by_hand(tmp_path / "run", token_by_token("a", 4000), sites=SITES[:1]))
    with ReplayEngine(recording, ReplaySettings(speed=0, ring_rows=512), probes=[probe("one")]) as engine:
        reader = RingReader.attach(engine.card.ring, from_oldest=True)
        stopped = threading.Event()
        reading = threading.Thread(target=read_slowly, args=(reader, stopped))
        reading.start()
        engine.start(lambda: reader.stats().steps)
        until(lambda: engine.stats().rounds == 1, 30)
        stopped.set()
        reading.join()
        counts = reader.stats()
        reader.close()
    assert (counts.rows, counts.missed_rows) == (4000, 0)


def read_slowly(reader: RingReader, stopped: threading.Event) -> None:
    while not stopped.wait(0.02):
        while reader.read() is not None:
            pass


def test_texts_of_the_recording_stand_in_for_a_tokenizer_that_is_not_at_hand(tmp_path: Path) -> None:
    """Exactly as recorded: blanks, several ids of one text, characters beyond ASCII; an id without a text has none."""
    texts = {0: " the", 1: "\ufffd", 2: "\ufffd", 3: "\n", 4: "❄", 5: '"<|x|>'}
    steps = token_by_token("a", 12)
    for i, step in enumerate(steps):
        step.meta["token_id"] = i % 7
    path = record_by_hand(tmp_path / "run", steps, texts=lambda ids: [texts.get(i, "") for i in ids])
    recording = Recording.open(path)
    found = texts_of(recording, recorded_model(recording), tmp_path)
    assert found.directory == str(tmp_path)
    shown = TokenTexts.load(Path(found.directory))
    assert {i: shown.own(i)[0] for i in texts} == texts


def test_a_tokenizer_at_hand_is_believed_only_if_it_agrees_with_the_recorded_texts(tmp_path: Path) -> None:
    """The model's own gives exact bytes and the special ids; another one at the same path gives wrong words."""
    vocabulary = json.loads((model_path() / "tokenizer.json").read_text())["model"]["vocab"]
    (word,) = (i for text, i in vocabulary.items() if text == "Ġfox")
    own = {"path": str(model_path())}
    for says, believed in ((" fox", True), (" dog", False)):
        steps = token_by_token("a", 5)
        for step in steps:
            step.meta["token_id"] = word
        path = record_by_hand(tmp_path / says.strip(), steps, texts=partial(_always, says), model=own)
        recording = Recording.open(path)
        found = texts_of(recording, recorded_model(recording), tmp_path)
        assert (found.directory == str(model_path())) is believed
        assert bool(found.special_ids) is believed
        assert TokenTexts.load(Path(found.directory)).own(word)[0] == says


def test_facts_that_the_manifest_lacks_follow_from_the_rows(tmp_path: Path) -> None:
    path = record_by_hand(tmp_path / "run", token_by_token("a", 9), model={"name": "", "n_layers": 0})
    model = recorded_model(Recording.open(path))
    assert (model.name, model.n_layers, model.d_model, model.max_context) == ("unknown model", 5, 8, 9)
    assert (model.dtype, set(model.widths)) == ("float32", set(SITES))


def test_the_largest_step_takes_no_more_than_half_of_the_ring() -> None:
    assert ReplaySettings().ring_spec(10).row_capacity == 65_536
    assert ReplaySettings().ring_spec(100_000).row_capacity == 200_000
