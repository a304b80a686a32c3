"""Triggers: the language of rules, and that they keep exactly what they say around the rows at which they fire."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from support.recordings.flight import SECOND, flying, kept

from actscope.errors import SettingsError
from actscope.recording.flight.triggers import ProbeRule, Rule, SampleRule, parse_rule
from actscope.recording.flight.windows import KeepWindow, TokensOrTime, Windows
from actscope.recording.reading.recording import Recording

# --- the language --------------------------------------------------------------------------------------------------------

_5S, _1MIN = TokensOrTime(ns=5 * SECOND), TokensOrTime(ns=60 * SECOND)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("probe danger > 3.2", ProbeRule("", "danger", ">", 3.2)),
        ("probe danger>3.2", ProbeRule("", "danger", ">", 3.2)),
        ("  probe a.b-c_1 <= -1e-3 ", ProbeRule("", "a.b-c_1", "<=", -1e-3)),
        ("probe d > 1 before 20 tokens", ProbeRule("", "d", ">", 1.0, before=TokensOrTime(tokens=20))),
        ("probe d >= 1 after 64tokens before 5s", ProbeRule("", "d", ">=", 1.0, before=_5S, after=TokensOrTime(tokens=64))),
        ("probe d < 1 mean over 8 tokens cooldown 1 min", ProbeRule("", "d", "<", 1.0, mean_over=8, cooldown=_1MIN)),
        ("probe d > 1 before 1 token after 500 ms",
         ProbeRule("", "d", ">", 1.0, before=TokensOrTime(tokens=1), after=TokensOrTime(ns=SECOND // 2))),
        ("sample 0.05", SampleRule("", 0.05)),
        ("sample 1", SampleRule("", 1.0)),
    ],
)  # fmt: skip
def test_what_the_language_says_is_understood(text: str, rule: Rule) -> None:
    found = parse_rule(text)
    assert found.text == text
    assert {**_fields(found), "text": ""} == _fields(rule)


def _fields(rule: Rule) -> dict[str, object]:
    return {name: getattr(rule, name) for name in rule.__slots__}


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", 1, "expected 'probe' or 'sample', found the end"),
        ("prob d > 1", 1, "expected 'probe' or 'sample', found 'prob'"),
        ("probe > 1", 7, "expected the id of a probe, found '>'"),
        ("probe d 1", 9, "expected one of > >= < <=, found '1'"),
        ("probe d >> 1", 10, "expected a number, found '>'"),
        ("probe d > high", 11, "expected a number, found 'high'"),
        ("probe d > nan", 11, "expected a number, found 'nan'"),
        ("probe d > 1 before", 19, "expected e.g. 20 tokens or 5s, found the end"),
        ("probe d > 1 before 20", 20, "expected e.g. 20 tokens or 5s, found '20'"),
        ("probe d > 1 before 2.5 tokens", 20, "expected e.g. 20 tokens or 5s, found '2.5'"),
        ("probe d > 1 before 5s before 3s", 23, "expected mean, after, cooldown or the end, found 'before'"),
        ("probe d > 1 mean over 5s", 23, "expected a number of tokens, found '5s'"),
        ("probe d > 1 mean over 0 tokens", 23, "expected a number of tokens, found '0'"),
        ("probe d > 1 during 5s", 13, "expected mean, before, after, cooldown or the end, found 'during'"),
        ("sample 2", 8, "expected a share between 0 and 1, found '2'"),
        ("sample 0.1 please", 12, "expected the end, found 'please'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, place: int, expected: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_rule(text)
    assert str(raised.value) == f"trigger {text!r}, character {place}: {expected}"


@pytest.mark.parametrize(
    ("text", "extent"),
    [("20", TokensOrTime(tokens=20)), (20, TokensOrTime(tokens=20)), ("1.5s", TokensOrTime(ns=3 * SECOND // 2))],
)
def test_a_window_length_is_a_number_of_tokens_or_a_time(text: str | int, extent: TokensOrTime) -> None:
    assert TokensOrTime.parse(text) == extent


@pytest.mark.parametrize("text", ["", "-1", "5 parsecs", "tokens", "1.5", "1.5 tokens", True])
def test_anything_else_is_no_window_length(text: str) -> None:
    with pytest.raises(SettingsError, match="extent"):
        TokensOrTime.parse(text)


def test_a_union_of_windows_chooses_what_any_of_them_does() -> None:
    """Against the plain definition, for random windows of positions and times."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        union, windows = Windows(), []
        for _ in range(rng.integers(1, 8)):
            first, first_ns = int(rng.integers(0, 50)), int(rng.integers(0, 50)) * int(rng.integers(0, 2))
            last_ns = first_ns + int(rng.integers(0, 30)) if first_ns else KeepWindow().last_ns
            windows.append(KeepWindow(first, first + int(rng.integers(0, 20)), first_ns, last_ns))
            union.add(windows[-1])
        for time_ns in (0, 10, 25, 60):
            expected = [
                any(w.first <= p <= w.last and w.first_ns <= time_ns <= w.last_ns for w in windows)
                for p in range(5, 75)
            ]
            assert union.chosen(5, 70, time_ns).tolist() == expected


# --- firing --------------------------------------------------------------------------------------------------------------


def rules(*texts: str) -> tuple[Rule, ...]:
    return tuple(map(parse_rule, texts))


def test_a_crossing_keeps_exactly_what_lies_before_and_after_it(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 4 tokens after 6 tokens")) as pilot:
        pilot.learn("danger")
        pilot.step({"a": 10, "b": 10}, scores=0)
        for i in range(30):
            pilot.step({"b": 1, "a": 1}, scores=[0, 5 if i == 7 else 1])
        pilot.end("a", "b")
    assert kept(tmp_path / "r", "a") == list(range(13, 24))  # it fired at position 17
    assert kept(tmp_path / "r", "b") == []
    recording = Recording.open(tmp_path / "r")
    rule = "probe danger > 3 before 4 tokens after 6 tokens"
    assert [(m.request, m.why) for m in recording.marks] == [("a", f"{rule}: 5 at position 17")]


def test_without_before_and_after_the_whole_request_is_kept(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger >= 3")) as pilot:
        pilot.learn("danger")
        pilot.step({"a": 10}, scores=[0] * 9 + [3])
        pilot.step({"a": 1}, scores=0)
    assert kept(tmp_path / "r", "a") == list(range(11))


def test_windows_in_seconds_are_exact(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 2s after 3s")) as pilot:
        pilot.learn("danger")
        for i in range(20):
            pilot.now_ns += SECOND
            pilot.step({"a": 1}, scores=5 if i == 9 else 0)
    assert kept(tmp_path / "r", "a") == list(range(7, 13))


def test_what_several_rows_want_within_one_prompt_is_kept_once(tmp_path: Path) -> None:
    scores = np.zeros(100)
    scores[[20, 21, 25, 60]] = 9
    with flying(tmp_path / "r", rules("probe danger > 3 before 3 tokens after 2 tokens")) as pilot:
        pilot.learn("danger")
        pilot.step({"b": 7, "a": 100}, scores=[*[0] * 7, *scores])
    assert kept(tmp_path / "r", "a") == [*range(17, 28), *range(57, 63)]
    assert Recording.open(tmp_path / "r").n_rows == 17
    assert len(Recording.open(tmp_path / "r").marks) == 1


def test_a_run_of_rows_over_the_threshold_is_one_mark_and_each_run_is_its_own(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 0 tokens after 0 tokens")) as pilot:
        pilot.learn("danger")
        for score in (0, 5, 6, 7, 0, 0, 8, 9, 0):
            pilot.step({"a": 1}, scores=score)
        assert pilot.flight.describe()["triggers"][0]["firings"] in (0, 1, 2)
        pilot.flight.settle()
        assert pilot.flight.describe()["triggers"][0]["firings"] == 2
    assert kept(tmp_path / "r", "a") == [1, 2, 3, 6, 7]
    assert [m.why.partition(": ")[2] for m in Recording.open(tmp_path / "r").marks] == [
        "5 at position 1",
        "8 at position 6",
    ]


def test_within_the_cooldown_a_rule_does_not_fire_again_for_that_request(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 0 tokens after 0 tokens cooldown 4 tokens")) as pilot:
        pilot.learn("danger")
        pilot.step({"a": 8, "b": 1}, scores=9)
        for _ in range(5):
            pilot.step({"a": 1, "b": 1}, scores=9)
    assert kept(tmp_path / "r", "a") == [0, 5, 10]
    assert kept(tmp_path / "r", "b") == [0, 5]


def test_a_cooldown_of_time_ends(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 0 tokens after 0 tokens cooldown 3s")) as pilot:
        pilot.learn("danger")
        for _ in range(10):
            pilot.now_ns += SECOND
            pilot.step({"a": 1}, scores=9)
    assert kept(tmp_path / "r", "a") == [0, 4, 8]


def test_a_mean_fires_where_the_mean_of_so_many_scores_does(tmp_path: Path) -> None:
    """Against numpy, for scores that come in chunks and one by one, two requests side by side."""
    rng = np.random.default_rng(0)
    series = {name: rng.normal(size=60).cumsum().astype(np.float32) for name in "ab"}
    with flying(tmp_path / "r", rules("probe danger > 1.5 mean over 5 tokens before 0 tokens after 0 tokens")) as pilot:
        pilot.learn("danger")
        at = 0
        for n in (3, 1, 1, 20, 1, 1, 2, 31):
            pilot.step({"a": n, "b": n}, scores=[*series["a"][at : at + n], *series["b"][at : at + n]])
            at += n
    for name, values in series.items():
        means = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), 5).mean(axis=1)
        assert kept(tmp_path / "r", name) == (np.flatnonzero(means > 1.5) + 4).tolist()


def test_special_tokens_and_scores_that_are_not_finite_neither_fire_nor_count(tmp_path: Path) -> None:
    rule = "before 0 tokens after 0 tokens"
    with flying(
        tmp_path / "r", rules(f"probe danger > 3 {rule}", f"probe danger > 4 mean over 2 tokens {rule}"), (7, 9000)
    ) as pilot:
        pilot.learn("danger")
        ids = [1, 7, 9000, 2, 3, 4, 10**6, 5]
        pilot.step({"a": 8}, scores=[0, 9, 9, np.nan, np.inf, 5, 2, 7], token_ids=ids)
    # single scores: positions 5 and 7; means of (0, 5), (5, 2), (2, 7): only the last is over 4
    assert kept(tmp_path / "r", "a") == [5, 7]
    assert len(Recording.open(tmp_path / "r").marks) == 2


def test_a_rule_waits_for_its_probe_says_so_once_and_follows_it_to_another_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "actscope.recording"),
        flying(tmp_path / "r", rules("probe danger > 3 before 0 tokens after 0 tokens")) as pilot,
    ):
        pilot.learn("joy", generation=1)
        pilot.learn("danger", generation=2, since=2)
        pilot.learn("joy", generation=3)
        for generation in (1, 1, 2, 2, 3, 3):
            pilot.step({"a": 1}, scores=9, generation=generation)
        pilot.flight.settle()
    assert kept(tmp_path / "r", "a") == [2, 3]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "waits: probe danger is not loaded (it may be added later); loaded are: joy" in said[0]


def test_a_rule_whose_probe_is_not_there_says_so_before_anything_has_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3", "probe joy > 1")) as pilot:
        pilot.learn("joy")
        pilot.flight.settle()
        (said,) = (record.getMessage() for record in caplog.records)
    assert "probe danger" in said and "loaded are: joy" in said


def test_a_mean_does_not_mix_the_scores_of_a_probe_and_the_one_that_replaced_it(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 mean over 3 tokens before 0 tokens after 0 tokens")) as pilot:
        pilot.learn("danger", generation=1, since=1)
        pilot.learn("danger", generation=2, since=2)
        for generation in (1, 1, 2, 2, 2, 2):
            pilot.step({"a": 1}, scores=9, generation=generation)
    assert kept(tmp_path / "r", "a") == [4, 5]


def test_rules_fire_on_steps_whose_rows_were_dropped_and_keep_what_comes(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 before 0 tokens after 2 tokens"), queue_bytes=1 << 16) as pilot:
        pilot.learn("danger")
        pilot.flight.settle()
        with pilot.thread_held():
            pilot.step({"x": 345}, scores=0)
            pilot.step({"a": 30}, scores=[*[0] * 29, 5])
            assert pilot.flight.stats().dropped_rows == 30
        pilot.step({"a": 5}, scores=0)
    assert kept(tmp_path / "r", "a") == [30, 31]


def test_memory_of_requests_goes_when_they_end(tmp_path: Path) -> None:
    with flying(tmp_path / "r", rules("probe danger > 3 mean over 3 tokens")) as pilot:
        pilot.learn("danger")
        for i in range(50):
            pilot.step({f"a{i}": 4}, scores=0, end=(f"a{i}",))
        pilot.flight.settle()
        assert [len(rule.requests) for rule in pilot.flight._retention._evaluator._rules] == [0]
