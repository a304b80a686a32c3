"""In which order rows lie and are served: what makes two feeds of one seed the same.

A window holds the next `window_rows` rows of its epoch's stream. They lie in the order of a permutation of the window, in which
they are served the first time; each further time round has a permutation of its own.
"""

from __future__ import annotations

import numpy as np

from actscope.permutation import Permutation


def places(window_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, *, shuffle: bool) -> np.ndarray:
    """Where rows start .. stop - 1 of a window's stream lie in it: int64."""
    if not shuffle:
        return np.arange(start, stop)
    return Permutation(window_rows, "place", seed, epoch, number).part(start, stop)


def served(n_rows: int, start: int, stop: int, seed: int, epoch: int, number: int, turn: int) -> np.ndarray:
    """Which rows of a window, as they lie in it, are number start .. stop - 1 of its `turn`-th time round, 1 or later: int64."""
    return Permutation(n_rows, "turn", seed, epoch, number, turn).part(start, stop)
