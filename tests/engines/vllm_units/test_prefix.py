"""Scores at the slots of the KV cache: found while the slot holds what is looked for, never afterwards."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.engines.vllm.publishing.labels import RequestState
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.frames import ROW_META, RowFlag

BLOCK, BLOCKS, WIDTH = 4, 6, 2


def meta(positions: list[int], flags: int = 0) -> np.ndarray:
    found = np.zeros(len(positions), ROW_META)
    found["position"], found["token_id"], found["flags"] = positions, np.array(positions) + 100, flags
    return found


def filled() -> PrefixScores:
    """Blocks 2 and 4 hold positions 0 to 7, scored 0 to 7 and 10 to 17 in generation 3."""
    scores = PrefixScores(BLOCKS, BLOCK, WIDTH)
    slots = np.array([8, 9, 10, 11, 16, 17, 18, 19])
    scores.keep(slots, meta(list(range(8))), np.stack([np.arange(8), np.arange(8) + 10], 1).astype(np.float32), 3)
    return scores


def test_blocks_that_are_found_again_bring_their_scores() -> None:
    """Labels say prompt and cached; the tokens are those that were computed."""
    ((labels, scores),) = filled().find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100)
    assert labels["position"].tolist() == list(range(8)) and labels["token_id"].tolist() == list(range(100, 108))
    assert set(labels["flags"].tolist()) == {int(RowFlag.PREFILL | RowFlag.CACHED)}
    assert scores[:, 1].tolist() == list(range(10, 18))


def test_long_prefixes_come_in_pieces() -> None:
    """At most `chunk` rows at once, in order."""
    pieces = [
        labels["position"].tolist()
        for labels, _ in filled().find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 3)
    ]
    assert pieces == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_slot_that_holds_another_position_is_not_used() -> None:
    """Blocks in another order hold another text, so no score is found."""
    assert list(filled().find(RequestState("r", n_prompt=9, blocks=[4, 2]), 0, 8, 100)) == []
    assert list(filled().find(RequestState("r", n_prompt=9, blocks=[0, 1]), 0, 8, 100)) == []


def test_a_column_knows_nothing_from_before_its_probe() -> None:
    """Scores of an older generation than the probe are NaN, the other column's stay."""
    prefix = filled()
    prefix.since = np.array([4, 3])
    ((_, scores),) = prefix.find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100)
    assert np.isnan(scores[:, 0]).all() and scores[:, 1].tolist() == list(range(10, 18))


def test_what_was_found_does_not_change_what_is_kept() -> None:
    """A NaN set for one reader does not change what the next one finds."""
    prefix = filled()
    prefix.since = np.array([4, 4])
    list(prefix.find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100))
    prefix.since = np.zeros(WIDTH, np.int64)
    ((_, scores),) = prefix.find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100)
    assert not np.isnan(scores).any()


def test_rejected_drafts_and_invalid_slots_are_not_kept() -> None:
    """A slot of -1, one outside the cache, and a rejected row leave everything as it was."""
    prefix = filled()
    before = [piece[1].tolist() for piece in prefix.find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100)]
    junk = np.full((1, WIDTH), 99, np.float32)
    prefix.keep(np.array([-1]), meta([0]), junk, 3)
    prefix.keep(np.array([BLOCKS * BLOCK]), meta([0]), junk, 3)
    prefix.keep(np.array([8]), meta([0], int(RowFlag.REJECTED)), junk, 3)
    assert [
        piece[1].tolist() for piece in prefix.find(RequestState("r", n_prompt=9, blocks=[2, 4]), 0, 8, 100)
    ] == before


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_copied_and_overwritten_blocks_behave_as_memory_does(data: st.DataObject) -> None:
    """Whatever is written and copied, a block brings what was written to it last."""
    prefix = PrefixScores(BLOCKS, BLOCK, WIDTH)
    plain: dict[int, float] = {}
    for stamp in range(data.draw(st.integers(1, 12))):
        block, source = data.draw(st.integers(0, BLOCKS - 1)), data.draw(st.integers(0, BLOCKS - 1))
        if data.draw(st.booleans()):
            slots = np.arange(block * BLOCK, (block + 1) * BLOCK)
            prefix.keep(slots, meta(list(range(BLOCK))), np.full((BLOCK, WIDTH), stamp, np.float32), 0)
            plain[block] = stamp
        else:
            prefix.copy_blocks([(source, block)])
            if source in plain:
                plain[block] = plain[source]
            else:
                plain.pop(block, None)
    for block in range(BLOCKS):
        found = list(prefix.find(RequestState("r", n_prompt=9, blocks=[block]), 0, BLOCK, 100))
        assert [scores[0, 0] for _, scores in found] == ([plain[block]] if block in plain else [])
