"""The display range of a probe that states none: learnt from ordinary tokens, the same for every client."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway.scripted_tokens import SPECIAL_IDS
from support.gateway.stage import Place, chat, chunks, picture

from actscope.gateway.scores.display_range import (
    FIRST_TOKENS,
    QUANTILES,
    SETTLED_SCORES,
    DisplayRanges,
    RangeLearner,
    display_range,
)
from actscope.gateway.scores.probe_table import table_of
from actscope.gateway.scores.request_log import RequestLog

RAW = ("raw", 1)
SPECIAL = 2


def log_of(scores: np.ndarray, *, cached: bool = False, ids: list[int] | None = None) -> RequestLog:
    """A request with these scores of one probe `raw`, one a token."""
    log = RequestLog("r", special=frozenset({SPECIAL}))
    tokens = ids or [7] * len(scores)
    log.set_prompt(tokens)
    columns = table_of({"probes": [{"slot": 0, "id": "raw", "site": "s", "since": 1}]}).columns
    log.take_rows(0, np.array(tokens), np.asarray(scores, np.float32)[:, None], columns, 0, cached)
    return log


def learnt_from(*logs: RequestLog) -> RangeLearner:
    """What is known after every row of these requests was read."""
    ranges = DisplayRanges()
    for log in logs:
        ranges.follow(log)
    for _ in range(sum(len(log.scores) for log in logs) // 1024 + 1):
        ranges.learn([RAW])
    return ranges._learners[RAW]


def residual_scores(n_requests: int, n_tokens: int) -> list[np.ndarray]:
    """Scores of a direction on rows like a real model's: heavy tails, and first rows with 140 times the norm of the others."""
    random = np.random.default_rng(3)
    rows = random.standard_t(4, (n_requests, n_tokens, 64)).astype(np.float32)
    rows[:, 0] *= 140
    direction = random.normal(size=64).astype(np.float32)
    return list(rows @ direction)


@pytest.mark.parametrize(("n_requests", "tolerance"), [(20, 0.0), (400, 0.1)])
def test_the_range_ends_at_numpys_quantiles_of_all_tokens_but_the_first(n_requests: int, tolerance: float) -> None:
    """Exactly so up to 4,096 scores, and within a tenth from a sample of more."""
    scores = residual_scores(n_requests, 40)
    learner = learnt_from(*(log_of(one) for one in scores))
    ordinary = np.concatenate([one[1:] for one in scores])
    at_last_estimate = learner._next // 2
    # `learn` reads the newest request first
    seen = np.concatenate([one[1:] for one in reversed(scores)])[:at_last_estimate]
    end = float(np.max(np.abs(np.quantile(seen.astype(np.float64), QUANTILES))))
    assert learner.n_tokens == len(ordinary)
    assert learner.range is not None
    assert learner.range[0] == -learner.range[1]
    assert learner.range[1] == pytest.approx(end, rel=0.1 + tolerance)
    assert learner.range[1] >= end * (1 - tolerance)
    assert max(float(np.max(np.abs(one[0]))) for one in scores) > 20 * learner.range[1]


def test_between_19_in_20_and_all_ordinary_tokens_have_a_colour_between_the_ends() -> None:
    scores = np.concatenate([one[1:] for one in residual_scores(30, 40)])
    low, high = display_range(scores, zeros=False)
    assert 0.95 < np.mean((scores > low) & (scores < high)) < 1
    assert np.mean((scores > 0) & (scores < 1)) < 0.1  # the range 0 to 1 that such a probe had before


@given(st.lists(st.integers(0, 700), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_scores_in_any_portions_give_the_same_range(portions: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.where(random.random(sum(portions)) < 0.3, 0, random.normal(1, 5, sum(portions))).astype(np.float32)
    at_once, in_parts = RangeLearner(), RangeLearner()
    at_once.add(scores)
    for part in np.split(scores, np.cumsum(portions)[:-1]):
        in_parts.add(part)
    assert at_once.facts() == in_parts.facts()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool), min_size=1, max_size=40),
    st.booleans(),
)
def test_a_range_rises_and_holds_the_quantiles_whatever_the_scores(scores: list[float], zeros: bool) -> None:
    values = np.array(scores, np.float32)
    low, high = display_range(values, zeros=zeros)
    inner = np.quantile(values.astype(np.float64), QUANTILES)
    assert np.isfinite([low, high]).all()
    assert low < high
    slack = 1e-6 * max(abs(low), abs(high))
    assert low <= inner[0] + slack
    assert high >= inner[1] - slack
    if zeros:
        assert low <= 0 <= high


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 12.0, 37.31], (0.0, 37.0)),
        ([-3.0, 12.0, 37.31], (-37.0, 37.0)),
        ([30.0, 41.0, 49.0], (30.0, 49.0)),
        ([-30.0, -41.0, -49.0], (-49.0, -30.0)),
        ([-0.002, -0.0004], (-0.002, 0.0)),
        ([2.5], (0.0, 2.5)),
    ],
)
def test_a_range_is_symmetric_for_both_signs_and_begins_at_zero_unless_all_scores_are_far_from_it(
    scores: list[float], expected: tuple[float, float]
) -> None:
    assert display_range(np.array(scores, np.float32), zeros=False) == pytest.approx(expected, rel=0.04)


def test_a_sparse_feature_has_the_range_of_its_active_tokens() -> None:
    """Of 4,000 tokens 40 are active: the quantile of all tokens would be 0."""
    scores = np.zeros(4000, np.float32)
    active = np.random.default_rng(0).uniform(2, 9, 40).astype(np.float32)
    scores[50::99][:40] = active
    learner = RangeLearner()
    learner.add(scores)
    assert learner.n_tokens == 4000
    assert learner.range is not None
    assert learner.range[0] == 0
    assert learner.range[1] == pytest.approx(np.quantile(active[: learner._next // 2], QUANTILES[1]), abs=0.1)


def test_a_feature_that_becomes_active_late_has_a_range_at_once() -> None:
    learner = RangeLearner()
    learner.add(np.zeros(900, np.float32))
    assert learner.facts() == {"range": None, "signed": False, "range_learnt": {"tokens": 900, "settled": False}}
    learner.add(np.array([4.0], np.float32))
    assert learner.range == (0.0, 4.0)


def test_no_range_is_given_before_there_are_a_few_tokens() -> None:
    learner = RangeLearner()
    learner.add(np.arange(1, FIRST_TOKENS, dtype=np.float32))
    assert learner.range is None
    learner.add(np.array([np.nan, np.inf, -np.inf], np.float32))
    assert learner.range is None
    learner.add(np.array([9.0], np.float32))
    assert learner.range == (0.0, pytest.approx(8.9, abs=0.2))


def test_a_settled_range_only_widens_and_changes_ever_more_rarely() -> None:
    """Scores that spread tenfold after 2,000 tokens, then hardly at all: wider at some doublings, never narrower again."""
    random, learner = np.random.default_rng(1), RangeLearner()
    changes: list[tuple[int, tuple[float, float]]] = []
    for n in range(1, 20_001):
        learner.add(random.normal(0, 10 if 2_000 < n < 9_000 else 1, 1).astype(np.float32))
        if learner.range is not None and (not changes or learner.range != changes[-1][1]):
            changes.append((n, learner.range))
    assert learner.settled
    assert all(later >= 2 * n for (n, _), (later, _) in pairwise(changes))
    settled = [found for n, found in changes if n >= SETTLED_SCORES]
    assert all(wider[0] <= low < high <= wider[1] for (low, high), wider in pairwise(settled))
    assert settled[-1][1] > 5 * settled[0][1]


def test_special_tokens_cached_rows_and_missing_rows_teach_nothing() -> None:
    scores = np.full(40, 3.0)
    ids = [7] * 40
    ids[5] = ids[6] = SPECIAL
    scores[5] = scores[6] = 1e6
    scores[9] = np.nan
    assert learnt_from(log_of(scores, ids=ids)).n_tokens == 40 - 1 - 2 - 1
    assert learnt_from(log_of(scores, cached=True)).n_tokens == 0


def test_a_row_is_read_once_and_a_call_reads_a_bounded_number() -> None:
    log, ranges = log_of(np.ones(3000)), DisplayRanges()
    ranges.follow(log)
    seen = []
    for _ in range(5):
        ranges.learn([RAW])
        seen.append(ranges.facts(RAW)["range_learnt"]["tokens"])
    assert seen == [1023, 2047, 2999, 2999, 2999]


def test_a_probe_put_again_is_learnt_anew_and_the_one_before_is_forgotten() -> None:
    log, ranges = log_of(np.ones(100)), DisplayRanges()
    ranges.follow(log)
    ranges.learn([RAW])
    assert ranges.facts(RAW)["range_learnt"]["tokens"] == 99
    ranges.learn([("raw", 2)])
    assert ranges.facts(("raw", 2)) == ranges.facts(RAW) == RangeLearner().facts()


def test_a_forgotten_request_is_not_kept_alive() -> None:
    ranges = DisplayRanges()
    ranges.follow(log_of(np.ones(100)))
    gc.collect()
    ranges.learn([RAW])
    assert ranges.facts(RAW)["range_learnt"]["tokens"] == 0


@pytest.fixture(params=["place", "parts_place"])
def one_or_two_stages(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    place: Place = request.getfixturevalue(request.param)
    with place.client() as client:
        yield client


def test_a_probe_without_a_range_is_shown_with_the_range_of_its_scores(
    one_or_two_stages: httpx.Client,
) -> None:
    """Null until it was scored; then learnt, marked as such and the same for all. One that states a range keeps it."""
    client = one_or_two_stages
    upload = {"vector": [0.0] * 4, "site": "layers.1.resid_post", "range": None}
    put = client.put("/v1/actscope/probes/raw", json=upload).json()
    try:
        assert (put["range"], put["range_learnt"]) == (None, {"tokens": 0, "settled": False})
        found = picture(chunks(client, chat(actscope={"probes": ["raw"]}, max_tokens=60)))
        listed = client.get("/v1/actscope/probes").json()["probes"]
        assert client.get("/v1/actscope/probes").json()["probes"] == listed
        by_id = {probe["id"]: probe for probe in listed}
        scored = {position: cell for (position, _), cell in found.cells.items() if cell is not None and position > 0}
        ordinary = [cell for position, cell in scored.items() if found.ids[position] not in SPECIAL_IDS]
        assert by_id["raw"]["range_learnt"] == {"tokens": len(ordinary), "settled": False}
        assert FIRST_TOKENS < len(ordinary) < len(scored)
        low, high = by_id["raw"]["range"]
        assert low == 0
        assert 0.8 < high <= 1  # the scripted scores are uniform on 0 to 1
        assert by_id["raw"]["signed"] is False
        assert "range_learnt" not in by_id["joy"]
        assert by_id["joy"]["range"] == [0.0, 1.0]
    finally:
        assert client.delete("/v1/actscope/probes/raw").status_code == 200
