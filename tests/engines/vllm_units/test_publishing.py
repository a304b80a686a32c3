"""Labels, cached scores and raw rows of random schedules, against what the scheduler itself knows of each row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vllm.schedules import BLOCK, WIDTH, Pass, Running, Scheduler, play, scores_of

from actscope.engines.pass_clock import PassClock
from actscope.engines.vllm.publishing.device_copy import HostPass
from actscope.engines.vllm.publishing.labels import Register, RequestState
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.engines.vllm.publishing.publisher import PassNote, Publisher
from actscope.frames import Frame, ListSink, PassTimes, RowFlag, SpanFlag, SplitFrame, Step
from actscope.ring.request_ids import ring_id
from actscope.taps.tap import TapBuffers

#: Prompts that often share beginnings, so that prefixes are found again.
PROMPTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 24)).map(lambda stem: [(stem[0] * 7 + i) % 50 for i in range(stem[1])]),
    min_size=1,
    max_size=12,
)


def publisher(scheduler: Scheduler, prefix: bool = True) -> tuple[Publisher, ListSink]:
    ring = ListSink()
    scores = PrefixScores(scheduler.n_slots // BLOCK, BLOCK, WIDTH) if prefix else None
    return Publisher(ring, None, scores, ["layers.0.resid_post"], [], buffers()), ring  # type: ignore[arg-type]  # writes alike


def buffers(kept: list[int] | None = None) -> TapBuffers:
    cpu, dtype = torch.device("cpu"), torch.float32
    return TapBuffers(n_sites=1, kept=kept or [], d=2, width=WIDTH, max_rows=64, dtype=dtype, device=cpu)


class Remembering(Scheduler):
    """Keeps every request, also those that have ended, in `all`."""

    def __init__(self, random: Random, **how: Any) -> None:
        super().__init__(random, **how)
        self.all: dict[str, Running] = {}

    def add(self, prompt: list[int], n_output: int) -> Running:
        request = super().add(prompt, n_output)
        self.all[request.name] = request
        return request


class WideSink(ListSink):
    """Takes rows in two parts, as the ring does."""

    def write(self, step: Step, frames: Sequence[Frame | SplitFrame]) -> None:
        blocks = [(f.site, f.blocks if isinstance(f, SplitFrame) else (np.asarray(f.rows),)) for f in frames]
        super().write(step, [Frame(site, np.concatenate(parts, axis=1)) for site, parts in blocks])


def steps_of(ring: ListSink, since: int) -> list[tuple[Step, np.ndarray]]:
    return [(step, np.asarray(frames[0].rows)) for step, frames in ring.steps[since:]]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, as_new=st.booleans(), n_blocks=st.integers(9, 24))
def test_each_row_of_a_random_schedule_has_its_own_label(
    seed: int, prompts: list[list[int]], as_new: bool, n_blocks: int
) -> None:
    """Chunks, drafts, preemptions, prefix hits, aborts: request, position, token, flags and scores are the scheduler's."""
    random = Random(seed)
    scheduler = Scheduler(random, n_blocks=n_blocks, resumed_as_new=as_new)
    watched, ring = publisher(scheduler)

    def see(one: Pass) -> None:
        before = len(ring.steps)
        watched.publish(one.note, one.on_host)
        if one.on_host is not None:
            _check_computed(one, *steps_of(ring, before)[-1])

    play(scheduler, random, prompts, see)
    assert watched.counts.uncertain_rows == watched.counts.tap_faults == 0


def _check_computed(one: Pass, step: Step, scores: np.ndarray) -> None:
    assert len(step.meta) == len(one.rows)
    spans = [span for span in step.spans if span.n_rows]
    for row, meta, score in zip(one.rows, step.meta, scores, strict=True):
        assert spans[meta["span"]].request == row.request
        flags = row.prefill * RowFlag.PREFILL | row.again * RowFlag.RECOMPUTED | row.rejected * RowFlag.REJECTED
        assert (meta["position"], meta["token_id"], meta["flags"]) == (row.position, row.token, int(flags)), row
        np.testing.assert_array_equal(score, row.scores)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, as_new=st.booleans(), n_blocks=st.integers(9, 24))
def test_no_position_of_a_text_is_left_out(seed: int, prompts: list[list[int]], as_new: bool, n_blocks: int) -> None:
    """What vLLM takes from its prefix cache comes as cached rows, with the scores of the same text, before what is computed."""
    random = Random(seed)
    scheduler = Scheduler(random, n_blocks=n_blocks, resumed_as_new=as_new)
    watched, ring = publisher(scheduler)
    delivered: dict[str, dict[int, int]] = defaultdict(dict)

    def see(one: Pass) -> None:
        before = len(ring.steps)
        watched.publish(one.note, one.on_host)
        found: dict[str, list[int]] = defaultdict(list)
        for step, scores in steps_of(ring, before):
            _take(step, scores, delivered, found)
        assert found == {request: list(positions) for request, positions in one.cached.items()}

    play(scheduler, random, prompts, see)


def _take(step: Step, scores: np.ndarray, delivered: dict[str, dict[int, int]], found: dict[str, list[int]]) -> None:
    """Checks that scores are those of the text that was delivered so far; cached positions go to `found`."""
    for span in step.spans:
        for meta, score in zip(step.meta[span.offset :][: span.n_rows], scores[span.offset :], strict=False):
            position, text = int(meta["position"]), delivered[span.request]
            if meta["flags"] & RowFlag.REJECTED:
                continue
            assert position == 0 or position - 1 in text, f"{span.request}: {position} comes before what precedes it"
            text[position] = int(meta["token_id"])
            np.testing.assert_array_equal(score, scores_of(tuple(text[p] for p in range(position + 1))))
            if meta["flags"] & RowFlag.CACHED:
                found[span.request].append(position)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, as_new=st.booleans())
def test_a_request_begins_once_and_ends_once(seed: int, prompts: list[list[int]], as_new: bool) -> None:
    """The first span is FIRST, the last is END without rows, and nothing of the request is kept in memory afterwards."""
    random = Random(seed)
    scheduler = Scheduler(random, resumed_as_new=as_new)
    watched, ring = publisher(scheduler)
    play(scheduler, random, prompts, lambda one: watched.publish(one.note, one.on_host))
    spans = defaultdict(list)
    for step, _ in steps_of(ring, 0):
        for span in step.spans:
            spans[span.request].append(span)
    for found in spans.values():
        assert [bool(span.flags & SpanFlag.FIRST) for span in found] == [True] + [False] * (len(found) - 1)
        assert [bool(span.flags & SpanFlag.END) for span in found] == [False] * (len(found) - 1) + [True]
    assert len(watched._register) == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, as_new=st.booleans())
def test_raw_rows_are_those_of_the_requests_that_want_them(seed: int, prompts: list[list[int]], as_new: bool) -> None:
    """Each row has its scores before it and its own label; other requests' rows stay where they are, and all are told of ends."""
    random = Random(seed)
    scheduler = Scheduler(random, resumed_as_new=as_new)
    rows_ring = WideSink()
    watched = Publisher(ListSink(), rows_ring, None, ["layers.0.resid_post"], [0], buffers(kept=[0]))  # type: ignore[arg-type]
    begun: set[str] = set()
    ended: set[str] = set()
    expected: list[tuple[Any, ...]] = []

    def wants(request: str) -> bool:
        return int(request[1:].split("-")[0]) % 2 == 0

    def see(one: Pass) -> None:
        begun.update(row.request for row in one.rows)
        ended.update(one.note.ended)
        for known in one.note.begun:
            known.wants_rows = wants(known.request)
        if one.on_host is not None:
            one.on_host.rows = np.array([[row.position, row.token] for row in one.rows], np.float32)
        expected.extend((row.request, row.position, row.token, *row.scores) for row in one.rows if wants(row.request))
        watched.publish(one.note, one.on_host)

    play(scheduler, random, prompts, see)
    found, told = [], set()
    for step, frames in rows_ring.steps:
        told |= {span.request for span in step.spans if span.flags & SpanFlag.END}
        spans = [span for span in step.spans if span.n_rows]
        for meta, row in zip(step.meta, frames[0].rows if frames else [], strict=True):
            span = spans[meta["span"]]
            assert row[WIDTH] == meta["position"] and row[WIDTH + 1] == meta["token_id"]
            found.append((span.request, meta["position"], meta["token_id"], *row[:WIDTH]))
    assert found == expected and watched.counts.raw_rows == len(expected)
    assert told == begun & ended


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, lost=st.integers(2, 5))
def test_counts_are_exact_when_passes_are_dropped(seed: int, prompts: list[list[int]], lost: int) -> None:
    """Rows that were published and rows that were dropped are all rows; those after a dropped pass still have their labels."""
    random = Random(seed)
    scheduler = Scheduler(random)
    watched, ring = publisher(scheduler)
    rows = passes = 0

    def see(one: Pass) -> None:
        nonlocal rows, passes
        rows, passes = rows + len(one.rows), passes + 1
        on_host = None if passes % lost == 0 else one.on_host
        before = len(ring.steps)
        watched.publish(one.note, on_host)
        if on_host is not None:
            step, _ = steps_of(ring, before)[-1]
            assert step.meta["position"].tolist() == [row.position for row in one.rows]

    play(scheduler, random, prompts, see)
    counts = watched.counts
    assert counts.rows + counts.dropped_rows == rows and counts.uncertain_rows == 0


def test_a_rejected_draft_behind_the_last_token_ends_nothing() -> None:
    """Only an accepted token where the answer must end makes what follows be after the end."""
    register = Register()
    register.add(RequestState("r", n_prompt=2, limit=5))
    after = int(RowFlag.AFTER_EOS)

    def flags(first: int, n: int, rejected: int) -> list[bool]:
        positions = np.arange(first, first + n)
        labels = register.label(["r"], np.array([0, n]), positions, positions, step=1, rejected=np.array([rejected]))
        return [bool(flag & after) for flag in labels.meta["flags"].tolist()]

    register.label(["r"], np.array([0, 2]), np.arange(2), np.arange(2), step=1)
    assert not any(flags(2, 4, rejected=3)[:3])
    assert flags(3, 4, rejected=0) == [False, False, True, True]
    assert flags(7, 1, rejected=0) == [True]


def test_rows_of_unknown_requests_and_of_broken_positions_are_left_out_and_counted() -> None:
    """Only these rows are left out and counted; the others keep their scores."""
    register = Register()
    for name in ("good", "broken"):
        register.add(RequestState(name, n_prompt=4))
    positions = np.array([0, 1, 0, 2, 5, 6, 7])
    starts = np.array([0, 2, 4, 7])
    labels = register.label(["good", "broken", "stranger"], starts, positions, np.arange(7), step=1)
    assert labels.index is not None and labels.index.tolist() == [0, 1] and labels.uncertain == 5
    assert [span.request for span in labels.spans] == ["good"]
    assert labels.meta["token_id"].tolist() == [0, 1]


@pytest.mark.parametrize("n_rows", [0, 1, 5])
def test_a_pass_that_holds_nothing_certain_is_empty(n_rows: int) -> None:
    """Labels of no rows are no error."""
    labels = Register().label(["stranger"], np.array([0, n_rows]), np.arange(n_rows), np.arange(n_rows), step=1)
    assert len(labels.meta) == 0 and labels.spans == ()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS)
def test_the_end_of_a_request_reaches_the_recorder_while_only_others_run(seed: int, prompts: list[list[int]]) -> None:
    """Where raw rows leave on request, passes in which nobody wants any bring none, and the ends are told all the same."""
    random = Random(seed)
    scheduler = Scheduler(random)
    rows_ring = WideSink()
    watched = Publisher(ListSink(), rows_ring, None, ["layers.0.resid_post"], [0], buffers(kept=[0]))  # type: ignore[arg-type]
    begun: set[str] = set()
    ended: set[str] = set()

    def see(one: Pass) -> None:
        begun.update(row.request for row in one.rows)
        ended.update(one.note.ended)
        watched.publish(one.note, one.on_host)  # on_host.rows is None: nobody wants any

    play(scheduler, random, prompts, see)
    told = [span.request for step, _ in rows_ring.steps for span in step.spans if span.flags & SpanFlag.END]
    assert sorted(told) == sorted(begun & ended) and watched.counts.raw_rows == 0


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30), prompts=PROMPTS, as_new=st.booleans(), lost=st.integers(2, 6))
def test_a_dropped_pass_forgets_its_own_slots_and_no_others(
    seed: int, prompts: list[list[int]], as_new: bool, lost: int
) -> None:
    """No cached score is ever one of another text, and what dropped passes did not touch is still found."""
    random = Random(seed)
    scheduler = Remembering(random, n_blocks=24, resumed_as_new=as_new)
    watched, ring = publisher(scheduler)
    passes = 0

    def see(one: Pass) -> None:
        nonlocal passes
        passes += 1
        before = len(ring.steps)
        watched.publish(one.note, None if passes % lost == 0 else one.on_host)
        for step, scores in steps_of(ring, before):
            for span in step.spans:
                for meta, score in zip(step.meta[span.offset :][: span.n_rows], scores[span.offset :], strict=False):
                    if meta["flags"] & RowFlag.CACHED:
                        text = scheduler.all[span.request].text[: int(meta["position"]) + 1]
                        np.testing.assert_array_equal(score, scores_of(tuple(text)))

    play(scheduler, random, prompts, see)
    assert watched.counts.failed_passes == 0


def test_scores_of_a_cached_prompt_survive_a_dropped_pass_of_another_request() -> None:
    """One dropped pass costs the cached prompts of the requests in it, from where they were, and nothing else."""
    ring = ListSink()
    prefix = PrefixScores(8, BLOCK, WIDTH)
    watched = Publisher(ring, None, prefix, ["layers.0.resid_post"], [], buffers())  # type: ignore[arg-type]  # writes alike
    one, other = (RequestState(name, 8, blocks=blocks) for name, blocks in (("a", [0, 1]), ("b", [2, 3])))
    watched.publish(_whole(["a"], [one], 1), _landed([8], [0], 1))
    watched.publish(_whole(["b"], [other], 2), None)
    again = RequestState("c", 9, blocks=[0, 1, 4], computed=8, next_position=8)
    watched.publish(_whole(["c"], [again], 3, n=1), _landed([1], [16], 3, first=8))
    assert watched.counts.cached_rows == 8 and watched.counts.tap_faults == 0


@pytest.mark.parametrize("request_id", ["b", "b" * 300], ids=["short", "too long for a ring"])
def test_a_cached_prompt_longer_than_the_ring_comes_in_parts(request_id: str) -> None:
    """No pass writes more than its part, so readers keep up; what the request's end cuts off is counted."""
    n = 40
    ring = ListSink()
    prefix = PrefixScores(n // BLOCK + 8, BLOCK, WIDTH)
    watched = Publisher(ring, None, prefix, ["layers.0.resid_post"], [], buffers(), ring_rows=32)  # type: ignore[arg-type]
    blocks = list(range(n // BLOCK))
    watched.publish(_whole(["a"], [RequestState("a", n, blocks=blocks)], 1, n=n), _landed([n], [0], 1))
    spare = n // BLOCK
    asks = RequestState(request_id, n + 1, blocks=[*blocks, spare], computed=n, next_position=n)
    found: list[list[int]] = []
    for i in range(3):
        before = len(ring.steps)
        note = _whole([request_id], [asks] if i == 0 else [], 2 + i, n=1)
        watched.publish(note, _landed([1], [spare * BLOCK + i], 2 + i, first=n + i))
        cached = [step for step, _ in ring.steps[before:-1]]
        found.append([p for step in cached for p in step.meta["position"].tolist()])
        assert all(step.spans[0].request == ring_id(request_id) for step in cached)
    assert found == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    first = next(step for step, _ in ring.steps if step.spans[0].request == ring_id(request_id)).spans[0]
    assert first.flags & SpanFlag.FIRST
    ends = PassNote([], np.zeros(1, np.int64), [], [request_id], 1, {0: [0, 1, 2]}, np.zeros(WIDTH, np.int64))
    watched.publish(ends, None)
    assert watched.counts.cached_rows == 32 and watched.counts.cached_dropped_rows == n - 32


def test_a_pass_that_cannot_be_published_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests begin and end all the same, it is counted, and the next pass is delivered."""
    ring = ListSink()
    watched = Publisher(ring, None, PrefixScores(4, BLOCK, WIDTH), ["layers.0.resid_post"], [], buffers())  # type: ignore[arg-type]
    with monkeypatch.context() as broken:
        broken.setattr(watched._register, "label", lambda *what: 1 / 0)
        watched.publish(_whole(["a"], [RequestState("a", 8, blocks=[0, 1])], 1, n=4), _landed([4], [0], 1))
    assert watched.counts.failed_passes == 1 and watched.counts.dropped_rows == 4
    watched.publish(_whole(["a"], [], 2, n=4), _landed([4], [4], 2, first=4))
    assert ring.steps[-1][0].spans[0].request == "a" and not np.isnan(np.asarray(ring.steps[-1][1][0].rows)).any()
    watched.publish(PassNote([], np.zeros(1, np.int64), [], ["a"], 1, {}, np.zeros(WIDTH, np.int64)), None)
    assert [span.flags for span in ring.steps[-1][0].spans] == [SpanFlag.END] and watched.counts.tap_faults == 0


def test_the_sampling_of_a_pass_is_told_under_its_own_number_or_not_at_all() -> None:
    """By the next pass, by an end under its number, and never by what follows a pass that was dropped."""
    ring, clock = ListSink(), PassClock()
    watched = Publisher(ring, None, None, ["layers.0.resid_post"], [], buffers())  # type: ignore[arg-type]

    def run(fired: int, *, lost: bool = False, ended: Sequence[str] = ()) -> PassTimes:
        for border in (clock.scheduled, clock.begun, clock.ended):
            border()
        times = clock.times()
        note = replace(
            _whole(["a"], [RequestState("a", 8)] if fired == 1 else [], fired, n=2), times=times, ended=ended
        )
        watched.publish(note, None if lost else _landed([2], [0], fired, first=2 * fired - 2))
        clock.sampling()
        clock.sampled()
        return clock.times()

    def told() -> list[tuple[int, PassTimes]]:
        steps = [(step.number, step.times) for step, _ in ring.steps]
        ring.steps.clear()
        return steps

    first, second = run(1), run(2)
    assert told() == [
        (1, first._replace(sampling_ns=0, sampled_ns=0)),
        (2, PassTimes(*second[:3], 0, 0, first.sampling_ns, first.sampled_ns)),
    ]  # fmt: skip
    run(3, lost=True, ended=["b"])  # nobody knows b, so nothing is published, and the sampling of 2 is not told
    fourth = run(4)
    assert told() == [(3, fourth._replace(sampling_ns=0, sampled_ns=0, before_sampling_ns=0, before_sampled_ns=0))]
    watched.publish(
        PassNote([], np.zeros(1, np.int64), [], ["a"], 1, {}, np.zeros(WIDTH, np.int64), times=clock.sampling_only()),
        None,
    )
    assert told() == [(3, PassTimes(sampling_ns=fourth.sampling_ns, sampled_ns=fourth.sampled_ns))]


def test_the_end_of_a_pass_on_a_device_is_when_its_copies_landed() -> None:
    ring = ListSink()
    watched = Publisher(ring, None, None, ["layers.0.resid_post"], [], buffers())  # type: ignore[arg-type]
    note = replace(_whole(["a"], [RequestState("a", 8)], 1, n=2), times=PassTimes(1, 2, 3))
    watched.publish(note, replace(_landed([2], [0], 1), landed_ns=9))
    assert ring.steps[0][0].times == PassTimes(1, 2, 9)


def _whole(names: list[str], begun: list[RequestState], fired: int, n: int = 8) -> PassNote:
    starts = np.arange(len(names) + 1) * n
    return PassNote(names, starts, begun, [], 1, {0: [0, 1, 2]}, np.zeros(WIDTH, np.int64), n_rows=n * len(names))


def _landed(sizes: list[int], slots: list[int], fired: int, first: int = 0) -> HostPass:
    """A pass of one request, whose rows go to the slots from `slots[0]` on."""
    positions = np.arange(first, first + sizes[0])
    where = np.arange(slots[0], slots[0] + sizes[0])
    scores = np.repeat(positions[:, None], WIDTH, 1).astype(np.float32)
    return HostPass(scores, None, positions, positions.astype(np.int32), where, np.array([fired]))
