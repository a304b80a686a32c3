"""What is replayed is what was recorded: every token, and scores of probes that came later, through an ordinary gateway."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from support.recordings.made import row_of, step_of, token_of
from support.recordings.replayed import PROMPTS, SITES, probe, record_builtin, record_by_hand, token_by_token, watching
from support.waiting import until

from actscope.engines.builtin import NAME, probes_path
from actscope.engines.hf.loading import load
from actscope.engines.replay.engine import ReplayEngine
from actscope.engines.replay.settings import ReplaySettings
from actscope.errors import ProbeError
from actscope.frames import SpanFlag
from actscope.probes import Probe, load_probes
from actscope.recording.reading.recording import Recording

FAST = ReplaySettings(speed=0)


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording.open(record_builtin(tmp_path_factory.mktemp("recorded") / "run.acts"))


def later_probes() -> list[Probe]:
    """The probes that come with the model, at the sites that were recorded, and one that nobody has trained."""
    known = [p for p in load_probes(probes_path()) if p.info.site in SITES]
    assert known, "the built-in model has probes at none of the recorded sites: record others"
    return [*known, probe("new", SITES[1], load(NAME).d_model)]


def test_every_score_is_the_probe_on_the_recorded_row(builtin: Recording) -> None:
    """All requests of the recording, all positions, all probes; tokens, texts and prompt lengths as they were."""
    probes = {p.id: p for p in later_probes()}
    special = set(load(NAME).tokenizer.all_special_ids)
    with ReplayEngine(builtin, FAST, probes=list(probes.values())) as engine, watching(engine) as scope:
        found = {name: scope.picture(name) for name in PROMPTS}
        listed = scope.client.get("/v1/actscope/requests").json()["requests"]
    assert {one["request"] for one in listed} == set(PROMPTS)
    assert {one["state"] for one in listed} == {"done"}
    for name, picture in found.items():
        tokens = builtin.tokens(name)
        assert picture.ids == {t.position: t.token_id for t in tokens}
        assert picture.prompt_tokens == builtin.request(name).n_prompt
        assert picture.text == load(NAME).tokenizer.decode([t.token_id for t in tokens])
        assert {p["id"] for p in picture.header} == set(probes)
        for probe_id, own in probes.items():
            rows = builtin.rows(own.info.site, request=name)
            for position, expected in zip(rows.labels["position"].tolist(), own.score(rows.values), strict=True):
                masked = own.info.token_mask == "special" and picture.ids[position] in special
                assert picture.states[position, probe_id] == ("m" if masked else "c")
                if not masked:
                    assert picture.cells[position, probe_id] == pytest.approx(expected, rel=1e-5, abs=2e-4)


def test_the_scores_are_those_of_the_models_own_hidden_states(builtin: Recording) -> None:
    """Scores equal the probe on hidden states of the same tokens in plain transformers."""
    loaded, own = load(NAME), probe("new", SITES[1], load(NAME).d_model)
    with ReplayEngine(builtin, FAST, probes=[own]) as engine, watching(engine) as scope:
        picture = scope.picture("fox")
    with torch.no_grad():
        ids = torch.tensor([[picture.ids[i] for i in range(len(picture.ids))]])
        hidden = loaded.model(ids, output_hidden_states=True).hidden_states[4][0]
    shown = np.array([picture.cells[i, "new"] for i in range(len(picture.ids))])
    assert np.allclose(shown, own.score(hidden.numpy()), atol=2e-3 * np.abs(shown).max())


def test_what_was_dropped_at_a_site_is_shown_as_never_computed_there_and_only_there(tmp_path: Path) -> None:
    path = record_by_hand(
        tmp_path / "run", token_by_token("a", 30), lost=lambda step, site: site == SITES[1] and step.number % 3 == 0
    )
    here, there = probe("here", SITES[0]), probe("there", SITES[1])
    with ReplayEngine(Recording.open(path), FAST, probes=[here, there]) as engine, watching(engine) as scope:
        picture = scope.picture("a")
    lost = {n + 2 for n in range(3, 28, 3)}  # step n holds position n + 2
    assert len(lost) == 9
    for position in range(30):
        assert picture.cells[position, "here"] == pytest.approx(score(here, "a", position), abs=1e-5)
        if position in lost:
            assert picture.states[position, "there"] == "n"
        else:
            assert picture.cells[position, "there"] == pytest.approx(score(there, "a", position), abs=1e-5)


def score(own: Probe, request: str, position: int) -> float:
    return float(own.score(row_of(request, position, own.info.site)[None])[0])


def test_rows_that_damage_has_taken_have_no_score_and_the_others_keep_theirs(tmp_path: Path) -> None:
    path = record_by_hand(tmp_path / "run", token_by_token("a", 20))
    recording = Recording.open(path)
    entry = recording[SITES[0]].blocks.entries[0]
    segment = sorted(path.glob("*.mcap"))[int(entry["segment"]) - 1]
    with segment.open("r+b") as file:  # one bit in the middle of the block's body
        file.seek(int(entry["offset"]) + int(entry["length"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    probes = [probe("lost", SITES[0]), probe("kept", SITES[1])]
    with ReplayEngine(Recording.open(path), FAST, probes=probes) as engine, watching(engine) as scope:
        picture = scope.picture("a")
    assert picture.letters("lost") == "n" * 20
    assert picture.letters("kept") == "c" * 20


def test_a_probe_that_comes_while_it_plays_is_there_from_the_next_token_on(tmp_path: Path) -> None:
    """Added and swapped through the gateway in a pause of the recording; earlier tokens keep what they had."""
    steps = token_by_token("a", 40)
    steps = [s if s.number <= 20 else replace(s, time_ns=s.time_ns + 1_500_000_000) for s in steps]
    path = record_by_hand(tmp_path / "run", steps)
    first, second = probe("one"), probe("two", SITES[2])
    with ReplayEngine(Recording.open(path), probes=[first]) as engine, watching(engine) as scope:
        until(lambda: scope.counts()["rows"] == 23)
        answer = scope.client.put("/v1/actscope/probes/two", json=body_of(second))
        assert (answer.status_code, answer.json()["site"]) == (200, SITES[2])
        assert scope.client.put("/v1/actscope/probes/one", json=body_of(probe("another"))).status_code == 200
        picture = scope.picture("a")
    assert picture.letters("two") == "n" * 23 + "c" * 17
    for position in range(23, 40):
        assert picture.cells[position, "two"] == pytest.approx(score(second, "a", position), abs=1e-5)
        assert picture.cells[position, "one"] == pytest.approx(score(probe("another"), "a", position), abs=1e-5)


def body_of(own: Probe) -> dict[str, object]:
    info = {k: v for k, v in msgspec.structs.asdict(own.info).items() if k != "id" and v is not None}
    return {**info, "vector": own.weight.tolist()}


def test_probes_that_the_recording_cannot_feed_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Not recorded, of another width, of another model; a probe that is not there cannot be removed."""
    path = record_by_hand(tmp_path / "run", token_by_token("a", 5))
    with ReplayEngine(Recording.open(path), FAST) as engine, watching(engine) as scope:
        for name, own, reason in (
            ("far", probe("far", "layers.5.resid_post"), "was not recorded; sites with rows: layers.0.resid_post"),
            ("wide", probe("wide", d=16), "they have 8"),
            ("other", probe("other", model="another/model"), "made for model 'another/model'; this is 'hand/made'"),
        ):
            answer = scope.client.put(f"/v1/actscope/probes/{name}", json=body_of(own))
            assert answer.status_code == 400
            assert reason in answer.json()["error"]["message"]
        assert scope.client.delete("/v1/actscope/probes/none").status_code == 404
        assert scope.client.get("/v1/actscope/probes").json()["probes"] == []
        assert scope.client.put("/v1/actscope/probes/x", content=b"{").status_code == 400
    with pytest.raises(ProbeError, match="--any-model"):
        ReplayEngine(Recording.open(path), probes=[probe("other", revision="7")])
    with ReplayEngine(
        Recording.open(path), ReplaySettings(any_model=True), probes=[probe("other", model="another/model")]
    ) as engine:
        assert [p.id for _, p in engine.bank.items()] == ["other"]


def test_a_recording_answers_questions_with_what_it_is(tmp_path: Path) -> None:
    path = record_by_hand(tmp_path / "run", token_by_token("a", 5))
    with ReplayEngine(Recording.open(path), FAST) as engine, watching(engine) as scope:
        for route, asked in (
            ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ("completions", {"prompt": "hi"}),
        ):
            answer = scope.client.post(f"/v1/{route}", json={"model": "m", **asked})
            assert answer.status_code == 400
            assert "this is a recording of hand/made" in answer.json()["error"]["message"]
        info = scope.client.get("/v1/actscope/info").json()["engine"]
        assert (info["kind"], info["model"]) == ("replay", "hand/made (recording)")
        assert scope.client.get("/v1/models").json()["data"][0]["id"] == "hand/made (recording)"


def test_requests_that_ran_together_end_each_with_its_last_row(tmp_path: Path) -> None:
    """Interleaved spans; one that never said its end is done, one that was aborted stays so; what was asked for is shown."""
    steps = [
        step_of(1, [("a", 0, 3), ("b", 0, 5)]),
        step_of(2, [("b", 5, 1), ("a", 3, 1), ("c", 0, 2)]),
        step_of(3, [("c", 2, 1)]),
    ]
    flags = SpanFlag.END | SpanFlag.ABORTED
    aborted = replace(steps[2], spans=tuple(replace(span, flags=flags) for span in steps[2].spans))
    recording = Recording.open(record_by_hand(tmp_path / "run", [*steps[:2], aborted]))
    own = probe("one")
    with ReplayEngine(recording, FAST, probes=[own]) as engine, watching(engine) as scope:
        found = {name: scope.picture(name) for name in "abc"}
        states = {name: scope.state(name) for name in "abc"}
    assert states == {"a": "done", "b": "done", "c": "aborted"}
    for name, n in (("a", 4), ("b", 6), ("c", 3)):
        assert found[name].ids == {p: token_of(name, p) for p in range(n)}
        for position in range(n):
            assert found[name].cells[position, "one"] == pytest.approx(score(own, name, position), abs=1e-5)
    with ReplayEngine(recording, ReplaySettings(("b",), speed=0), probes=[own]) as engine, watching(engine) as scope:
        scope.picture("b")
        assert [one["request"] for one in scope.client.get("/v1/actscope/requests").json()["requests"]] == ["b"]


def test_thirty_thousand_tokens_as_fast_as_it_goes_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring of an eighth of the rows, lapped far faster than it would be outside of this test: the gateway has them all."""
    monkeypatch.setattr("actscope.engines.replay.pace.LAP_S", 0.02)
    path = record_by_hand(tmp_path / "run", token_by_token("long", 30_000), sites=SITES[:1])
    own = probe("one")
    settings = ReplaySettings(speed=0, ring_rows=4096)
    with ReplayEngine(Recording.open(path), settings, probes=[own]) as engine, watching(engine) as scope:
        picture = scope.picture("long")
        counts = scope.counts()
    assert (counts["rows"], counts["missed_rows"], counts["missed_steps"]) == (30_000, 0, 0)
    assert len(picture.ids) == 30_000
    for position in range(0, 30_000, 997):
        assert picture.cells[position, "one"] == pytest.approx(score(own, "long", position), abs=1e-5)


def test_a_gateway_that_comes_when_all_is_over_still_shows_it(tmp_path: Path) -> None:
    """The ring holds what was played until more comes, and the replay does not end by itself."""
    path = record_by_hand(tmp_path / "run", token_by_token("a", 500))
    with ReplayEngine(Recording.open(path), FAST, probes=[probe("one")]) as engine:
        engine.start()
        until(lambda: engine.stats().rounds == 1)
        with watching(engine, late=True) as scope:
            picture = scope.picture("a")
    assert picture.letters("one") == "c" * 500


def test_a_loop_plays_again_under_new_names_and_the_first_round_stays(tmp_path: Path) -> None:
    path = record_by_hand(tmp_path / "run", token_by_token("a", 8))
    settings = ReplaySettings(speed=0, loop=True)
    with ReplayEngine(Recording.open(path), settings, probes=[probe("one")]) as engine, watching(engine) as scope:
        assert scope.picture("a~2").cells == scope.picture("a").cells


def test_what_ends_leaves_nothing_behind(tmp_path: Path, runtime_directory: Path) -> None:
    """Card, socket, tables, ring and scratch files are gone, also when it is stopped in the middle."""
    path = record_by_hand(tmp_path / "run", token_by_token("a", 400), texts=lambda ids: [f"<{i}>" for i in ids])
    with ReplayEngine(Recording.open(path), ReplaySettings(speed=1e-3)) as engine, watching(engine) as scope:
        until(lambda: scope.counts()["rows"] > 0)
        scratch, ring = Path(engine.card.tokenizer), Path("/dev/shm") / engine.card.ring
        assert scratch.is_dir() and ring.exists()
    assert not scratch.exists() and not ring.exists()
    assert list(runtime_directory.iterdir()) == []
    with pytest.raises(ProbeError):
        ReplayEngine(Recording.open(path), probes=[probe("far", "layers.5.resid_post")])
    assert list(runtime_directory.iterdir()) == []
