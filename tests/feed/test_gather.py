"""How well rows are mixed, and what the order depends on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.feed.buffer.gather import places, served
from actscope.permutation import Permutation


@given(st.integers(1, 500), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_every_row_of_a_window_has_one_place(rows: int, seed: int, epoch: int, number: int) -> None:
    """The places of a window are 0 .. rows - 1, each once, and so are the rows of each later turn."""
    found = places(rows, 0, rows, seed, epoch, number, shuffle=True)
    assert sorted(found.tolist()) == list(range(rows))
    again = served(rows, 0, rows, seed, epoch, number, 1)
    assert sorted(again.tolist()) == list(range(rows))


def test_without_a_shuffle_rows_lie_as_they_come() -> None:
    """shuffle=False keeps the order of the stream."""
    assert places(10, 3, 7, 1, 2, 3, shuffle=False).tolist() == [3, 4, 5, 6]


def test_windows_epochs_seeds_and_turns_have_orders_of_their_own() -> None:
    """Windows, epochs, seeds and turns that differ have different orders."""
    orders = [places(1000, 0, 1000, *key, shuffle=True) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    orders += [served(1000, 0, 1000, 0, 0, 0, turn) for turn in (1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_of_a_text_are_neighbours_in_a_batch_as_often_as_chance_has_it(seed: int) -> None:
    """Of rows that follow each other in a window, as many are of one text as in a uniform shuffle: about length / rows."""
    rows, length = 1 << 16, 64
    stream = np.empty(rows, np.int64)
    stream[places(rows, 0, rows, seed, 0, 0, shuffle=True)] = np.arange(rows)
    together = (np.diff(stream // length) == 0).sum()
    expected = (rows - 1) * (length - 1) / (rows - 1)
    assert abs(together - expected) < 5 * np.sqrt(expected)
    assert abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.02


def test_the_rows_of_a_batch_come_from_all_over_the_window() -> None:
    """The source places of a batch are uniform over the window (chi-square over 64 stretches)."""
    rows, batch = 1 << 16, 4096
    inverse = Permutation(rows, "place", 0, 0, 0).inverse(np.arange(batch))
    counts = np.bincount(inverse * 64 // rows, minlength=64)
    chi_square = ((counts - batch / 64) ** 2 / (batch / 64)).sum()
    assert chi_square < 63 + 5 * np.sqrt(2 * 63)
