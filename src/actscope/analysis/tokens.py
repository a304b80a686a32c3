"""Selection of the rows that count, and the order of sites in a model."""

from __future__ import annotations

import numpy as np

from actscope.errors import SiteError
from actscope.frames import SPURIOUS_ROWS
from actscope.sites import POINTS, Site


def genuine(labels: np.ndarray) -> np.ndarray:
    """Select the rows that count: of each token of each request the row computed last, without spurious rows.

    Args:
        labels: Labels [n] with the fields request, position and flags, in the order in which the rows were computed.

    Returns:
        bool [n], true for selected rows.
    """
    kept = np.zeros(len(labels), bool)
    indices = np.flatnonzero((labels["flags"] & SPURIOUS_ROWS) == 0)
    order = indices[np.lexsort((indices, labels["position"][indices], labels["request"][indices]))]
    if len(order):
        request, position = labels["request"][order], labels["position"][order]
        last = np.ones(len(order), bool)
        last[:-1] = (request[1:] != request[:-1]) | (position[1:] != position[:-1])
        kept[order[last]] = True
    return kept


def depth(site: str) -> tuple[float, int]:
    """Return a sort key for sites: earlier in the model is smaller. Sites with unknown names come last."""
    try:
        parsed = Site.parse(site)
    except SiteError:
        return (float("inf"), 1)
    if parsed.layer is None:
        return (-1.0, 0) if parsed.point == "embed" else (float("inf"), 0)
    return (float(parsed.layer), POINTS.index(parsed.point))
