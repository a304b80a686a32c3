"""An order of n things that takes no memory: a bijection, undone exactly, the same everywhere, and no worse than shuffling."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.errors import SettingsError
from actscope.permutation import Permutation

KEYS = st.tuples(st.integers(0, 2**32), st.integers(0, 50))


@given(st.integers(0, 3000), KEYS)
def test_every_thing_stands_at_one_place(n: int, key: tuple[int, int]) -> None:
    """Also for n = 0, 1, 2, and around the powers of four at which the domain grows."""
    assert sorted(Permutation(n, *key).part(0, n).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097])
def test_the_edges_of_the_domain_are_no_exception(n: int) -> None:
    """A domain of 4^b things is used whole, and one thing more takes the next."""
    order = Permutation(n, "edges")
    assert len(order) == n
    assert sorted(order.part(0, n).tolist()) == list(range(n))
    assert order.inverse(order.part(0, n)).tolist() == list(range(n))


@given(st.integers(1, 1 << 62), KEYS, st.lists(st.integers(0, (1 << 62) - 1), max_size=20))
def test_the_inverse_finds_the_place_of_a_thing(n: int, key: tuple[int, int], drawn: list[int]) -> None:
    """Both ways round, for any n up to 2^62."""
    order, places = Permutation(n, *key), np.array([place % n for place in drawn], np.int64)
    assert order.inverse(order(places)).tolist() == places.tolist()
    assert order(order.inverse(places)).tolist() == places.tolist()


def test_the_order_is_the_same_on_every_machine_and_with_every_version() -> None:
    """Feeds and harvests resume by it: these numbers never change."""
    assert Permutation(10, 7, 0).part(0, 10).tolist() == [6, 3, 1, 0, 5, 4, 2, 7, 9, 8]
    assert Permutation(1000, "seed", 3).part(0, 8).tolist() == [640, 727, 45, 778, 196, 819, 888, 210]
    assert Permutation(10**12, 42, 0).part(0, 3).tolist() == [192069999796, 448238453717, 261641117831]
    assert Permutation(1 << 62, 1).part(0, 2).tolist() == [2754951908796483608, 4141044211757033727]


@given(st.integers(1, 500), KEYS, st.data())
def test_any_part_is_that_of_the_whole(n: int, key: tuple[int, int], data: st.DataObject) -> None:
    """Places may be asked for in any shape, and none before them has to be computed."""
    order = Permutation(n, *key)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert order.part(start, stop).tolist() == order.part(0, n)[start:stop].tolist()
    assert order(np.arange(n).reshape(1, n)).tolist() == [order.part(0, n).tolist()]


def test_another_key_is_another_order() -> None:
    """Keys are compared part by part: (1, 11) and (11, 1) differ."""
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 11), (11, 1), ("0", "a")]
    assert len({tuple(Permutation(100, *key).part(0, 100).tolist()) for key in keys}) == len(keys)


def test_every_order_of_few_things_is_as_likely_as_any() -> None:
    """Of 4 things, 24 orders: chi-square over 12,000 keys (23 degrees of freedom; 99.99 % lie below 58.6)."""
    orders = [tuple(Permutation(4, key).part(0, 4).tolist()) for key in range(12_000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 58.6


@pytest.mark.parametrize("n", [1000, 4096, 100_000])
def test_what_comes_early_is_drawn_evenly_from_all(n: int) -> None:
    """Chi-square of 20 parts of the order against 20 parts of the things (361 degrees of freedom; 99.99 % lie below 468)."""
    things = np.concatenate([Permutation(n, key).part(0, n) for key in range(3)])
    places = np.tile(np.arange(n), 3)
    table = np.histogram2d(places, things, bins=20, range=[[0, n], [0, n]])[0]
    expected = table.sum() / 400
    assert ((table - expected) ** 2 / expected).sum() < 468


@pytest.mark.parametrize("n", [1000, 4096, 100_000])
def test_neighbours_do_not_stay_neighbours(n: int) -> None:
    """Two in a row are n / 3 apart on average, as in a shuffle, and ascend half the time."""
    steps = np.concatenate([np.diff(Permutation(n, key).part(0, n)) for key in range(20)])
    bound = 5 / np.sqrt(len(steps))
    assert abs(np.abs(steps).mean() / (n / 3) - 1) < bound
    assert abs((steps > 0).mean() - 0.5) < bound


def test_a_trillion_things_take_no_memory() -> None:
    """What is allocated is for the places asked for."""
    tracemalloc.start()
    Permutation(10**12, 0).part(10**11, 10**11 + 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("places", [[-1], [10], [0, 10]])
def test_a_place_outside_is_refused(places: list[int]) -> None:
    """It never wraps around."""
    with pytest.raises(IndexError, match=r"0 \.\. 9"):
        Permutation(10, 0)(np.array(places))


@pytest.mark.parametrize("n", [-1, (1 << 62) + 1])
def test_a_number_that_cannot_be_is_refused(n: int) -> None:
    """The message says which."""
    with pytest.raises(SettingsError, match=str(n)):
        Permutation(n, 0)
