"""What a request asks for in its `extra_args` ("vllm_xargs" over HTTP), where rows leave the model's process only when asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.vllm import mixed
from support.vllm.bed import Configuration, Generated, Offline
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Ring, Seen, card, external, recording_of

from actscope.frames import RowFlag
from actscope.recording.reading.recording import Recording
from actscope.sampling import keeps

SAMPLED = [f"plain-{n}" for n in range(24)]


def unsampled(stem: str) -> str:
    """An id with this stem that the sample of one half leaves out."""
    return next(id for n in range(100) if not keeps(id := f"{stem}{n}", 0.5))


SAMPLED_NO = next(id for n in range(100) if keeps(id := f"sampled-no{n}", 0.5))
YES, NO, SOME, KEEP, FULL, BROKEN, SIMPLE = map(unsampled, ("yes", "no", "some", "keep", "full", "broken", "simple"))


@dataclass
class Answered:
    """All requests of the one run that the tests look at."""

    recording: Recording
    done: dict[str, Generated]
    seen: dict[str, Seen]


@pytest.fixture(scope="module")
def answered(model: Callable[[str], Path], engines: Engines) -> Iterator[Answered]:
    directory = short_directory()
    environment = {
        "ACTSCOPE_RECORD": str(directory / "record"),
        "ACTSCOPE_ROW_SITES": "all",
        "ACTSCOPE_ROWS": "asked",
        "ACTSCOPE_SAMPLE": "0.5",
    }
    engine = engines.start(Offline, Configuration(model("llama"), environment=environment))
    ring = Ring(card(engine))
    done: dict[str, Any] = {}
    options: list[tuple[str, Any]] = [
        (SIMPLE, None),
        (YES, {"rows": True}),
        (NO, {"rows": False}),
        (SAMPLED_NO, {"rows": False}),
        (SOME, {"rows": "1,3"}),
        (KEEP, {"keep": "because it was odd"}),
        (FULL, {"full_prompt": True, "rows": True}),
        (BROKEN, "{not json"),
    ]
    for id, asked in options:
        text = asked if isinstance(asked, str) else json.dumps(asked)
        engine.add(id, mixed.prompt(1, 80), extra_args={"actscope": text} if asked is not None else None)
        done |= engine.drain()  # one after the other, so that each could find the prompt in the cache
    for id in SAMPLED:
        engine.add(id, mixed.prompt(2, 20))
    done |= engine.drain()
    seen = {external(request)[0]: one for request, one in ring.read().items()}
    ring.close()
    engines.end()
    yield Answered(recording_of(directory / "record"), done, seen)
    shutil.rmtree(directory, ignore_errors=True)


def rows_of(recording: Recording, request: str) -> dict[str, int]:
    return {site: len(recording.rows(site, request=request)) for site in recording.sites}


def test_rows_of_requests_that_ask_are_recorded(answered: Answered) -> None:
    """`rows: true` gives all sites at every position that was computed; what came from the cache was computed for another."""
    assert rows_of(answered.recording, YES) == dict.fromkeys(mixed.STREAM, 80 + 8 - 1 - 64)


def test_a_selection_gives_just_these_sites(answered: Answered) -> None:
    """`rows: "1,3"` records two of four layers."""
    found = rows_of(answered.recording, SOME)
    assert found == {site: 23 if site in (mixed.STREAM[1], mixed.STREAM[3]) else 0 for site in mixed.STREAM}


def test_requests_that_do_not_ask_leave_no_rows(answered: Answered) -> None:
    """Requests without options, with `rows: false` (even in the sample) or with unreadable options have scores and no rows."""
    for id in (SIMPLE, NO, SAMPLED_NO, BROKEN):
        assert id not in answered.recording.requests or len(answered.recording.labels(id)) == 0
        assert len(answered.seen[id].rows) == 87


def test_the_sample_follows_from_the_ids_that_clients_know(answered: Answered) -> None:
    """The same half in every run: rows are recorded for just those."""
    expected = [id for id in SAMPLED if keeps(id, 0.5)]
    assert 4 < len(expected) < 20
    assert sorted(set(answered.recording.requests) & set(SAMPLED)) == sorted(expected)
    for id in expected:
        assert rows_of(answered.recording, id) == dict.fromkeys(mixed.STREAM, 27)


def test_a_request_can_be_kept_from_its_beginning(answered: Answered) -> None:
    """`keep` marks it, with the reason, and its rows are recorded although they were not asked for otherwise."""
    assert rows_of(answered.recording, KEEP) == dict.fromkeys(mixed.STREAM, 23)
    assert [mark.why for mark in answered.recording.marks if mark.request == KEEP] == ["because it was odd"]


def test_a_full_prompt_is_computed_although_it_is_cached(answered: Answered) -> None:
    """All positions have rows, and none is said to be cached; the answer is the same."""
    assert rows_of(answered.recording, FULL) == dict.fromkeys(mixed.STREAM, 87)
    assert not answered.seen[FULL].having(RowFlag.CACHED).any()
    assert answered.seen[YES].having(RowFlag.CACHED).sum() == 64
    assert answered.done[FULL].cached == 0 and answered.done[FULL].token_ids == answered.done[SIMPLE].token_ids
