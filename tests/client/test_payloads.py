"""Payloads that are not what a gateway sends: each is an error of ours, and none is taken in part."""

from __future__ import annotations

from typing import Any

import pytest

from actscope.client import Scores, ScoreState
from actscope.errors import ScoresError, ScoresNotFound

HEADER: dict[str, Any] = {
    "v": 1,
    "request": "chatcmpl-1",
    "prompt_tokens": 1,
    "probes": [{"id": "danger", "site": "layers.1.resid_post", "since": 1}],
}
FIRST: dict[str, Any] = HEADER | {
    "tokens": {"start": 0, "ids": [1, 2], "text": ["<s>", "\ufffd"], "bytes": {"1": "4oI="}},
    "scores": {"start": 0, "rows": [[0.5]]},
}
FINAL = {"finish_reason": "stop", "present": 3, "computed": 2, "cached": 1}
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


def scores_of(*payloads: dict[str, Any]) -> Scores:
    found = Scores()
    for payload in payloads:
        found.add(payload)
    return found


def test_each_state_is_told_apart() -> None:
    """Pending until the row comes; then a value (0.0 is one), masked, not finite, or never computed."""
    found = scores_of(FIRST)
    assert [token.scores["danger"].state for token in found] == [ScoreState.VALUE, ScoreState.PENDING]
    assert [token.pending for token in found] == [False, True]
    assert (found[0].in_prompt, found[1].in_prompt, found[1].raw) == (True, False, b"\xe2\x82")
    assert found.n_resolved == 1
    found.add({"v": 1, "scores": {"start": 1, "rows": [[0.0]]}})
    assert found[1].scores["danger"].value == 0.0
    found.add(
        {
            "v": 1,
            "tokens": {"start": 2, "ids": [3, 4, 5, 6], "text": ["\ufffd", "b", "c", "d"], "bytes": {"0": "rA=="}},
            "scores": {"start": 2, "rows": [[None], [None], [None]], "states": ["m", "x", "n"]},
            "final": FINAL,
        }
    )
    masked, infinite, lost, last = (token.scores["danger"].state for token in found[2:])
    assert (masked, infinite) == (ScoreState.MASKED, ScoreState.NOT_FINITE)
    assert lost == last == ScoreState.NEVER_COMPUTED
    assert found.text == "<s>\u20acbcd"
    assert found.coverage is not None
    assert (found.coverage.present, found.coverage.cached, found.finish_reason) == (3, 1, "stop")
    assert found.values("danger")[:2].tolist() == [0.5, 0.0]
    with pytest.raises(ScoresNotFound, match=r"no probe 'joy'.*danger"):
        found.values("joy")


def test_a_probe_that_is_added_has_scores_from_there_on() -> None:
    both = [*HEADER["probes"], {"id": "joy", "site": "layers.0.resid_post", "since": 2}]
    found = scores_of(FIRST, {"v": 1, "probes": both, "scores": {"start": 1, "rows": [[0.1, 0.2]]}})
    assert [set(token.scores) for token in found] == [{"danger"}, {"danger", "joy"}]
    assert found.values("joy")[1] == 0.2


def test_features_come_with_their_position() -> None:
    block = {"start": 0, "ids": [[7, 3], None], "values": [[1.5, None], None]}
    first, second = scores_of(FIRST | {"features": block})
    assert [(f.index, f.strength) for f in first.features or ()] == [(7, 1.5), (3, None)]
    assert second.features is None


MALFORMED: dict[str, Any] = {
    "not an object": ["v", 1],
    "no version": {k: v for k, v in FIRST.items() if k != "v"},
    "another version": FIRST | {"v": 2},
    "a version that is true": FIRST | {"v": "1"},
    "ids that are text": FIRST | {"tokens": {"start": 0, "ids": ["a"], "text": ["a"]}},
    "a negative start": FIRST | {"tokens": {"start": -1, "ids": [1], "text": ["a"]}},
    "a huge start": FIRST | {"scores": {"start": 10**30, "rows": [[0.5]]}},
    "two starts": FIRST | {"scores": {"start": 1, "rows": [[0.5]]}},
    "fewer texts than ids": FIRST | {"tokens": {"start": 0, "ids": [1, 2], "text": ["a"]}},
    "bytes that are no base64": FIRST | {"tokens": FIRST["tokens"] | {"bytes": {"1": "!"}}},
    "bytes of a token that is not there": FIRST | {"tokens": FIRST["tokens"] | {"bytes": {"2": "4oI="}}},
    "bytes of no index": FIRST | {"tokens": FIRST["tokens"] | {"bytes": {"x": "4oI="}}},
    "a cell too many": FIRST | {"scores": {"start": 0, "rows": [[0.5, 0.5]]}},
    "a null without a state": FIRST | {"scores": {"start": 0, "rows": [[None]]}},
    "a value that is not finite": FIRST | {"scores": {"start": 0, "rows": [[float("nan")]]}},
    "a value beside the state masked": FIRST | {"scores": {"start": 0, "rows": [[0.5]], "states": ["m"]}},
    "an unknown state": FIRST | {"scores": {"start": 0, "rows": [[None]], "states": ["q"]}},
    "fewer states than rows": FIRST | {"scores": {"start": 0, "rows": [[0.5]], "states": []}},
    "a number of 400 digits": FIRST | {"scores": {"start": 0, "rows": [[10**400]]}},
    "lists in lists": FIRST | {"scores": {"start": 0, "rows": DEEP}},
    "features without values": FIRST | {"features": {"start": 0, "ids": [[1]], "values": [[]]}},
    "a coverage below 0": FIRST | {"final": FINAL | {"present": -1}},
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_payload_is_an_error_of_ours(payload: Any) -> None:
    with pytest.raises(ScoresError, match="actscope payload"):
        scores_of(payload)


def test_payloads_that_do_not_follow_each_other_are_refused() -> None:
    """A gap, a repetition, and one after the last."""
    for start in (0, 2):
        with pytest.raises(ScoresError, match=r"scores.start: expected 1, found"):
            scores_of(FIRST, {"v": 1, "scores": {"start": start, "rows": [[0.1]]}})
    with pytest.raises(ScoresError, match="nothing after the last payload"):
        scores_of(FIRST | {"final": FINAL}, {"v": 1})
