"""Coverage of a request: how many of its positions and cells have a score, and in words why others have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.gateway.scores.columns import ScoreColumn
from actscope.gateway.scores.probe_table import Columns

#: Most reasons that are given.
_MOST_REASONS = 8
_SEE = "see `troubles` in GET /v1/actscope/info"


@dataclass(frozen=True, slots=True)
class RequestCoverage:
    """Counts of positions and cells. A cell is a probe at a position; it has a value unless it was never computed.

    Attributes:
        present: Positions.
        computed: Positions where at least one probe has a value. Without probes: positions with a row.
        cached: Those of `computed` whose values were taken over with the prefix cache.
        missing_cells: Cells without a value.
        why: Reasons for missing cells in words. Empty if only the last position has none, whose token was never fed back.
    """

    present: int
    computed: int
    cached: int
    missing_cells: int
    why: tuple[str, ...] = ()


def coverage_of(scores: ScoreColumn, present: int, wanted: Sequence[str] | None = None) -> RequestCoverage:
    """Return the coverage of a request.

    Args:
        scores: Its scores.
        present: Number of its positions.
        wanted: Ids of the probes to look at; None for all.
    """
    n = min(len(scores), present)
    columns = scores.columns_over(0, n).probes if n else Columns()
    columns = columns if wanted is None else columns.pick(wanted)
    whole = n - 1 if n == present and n and not scores.has_row(n - 1) else n
    if columns.ids and present - whole <= 1 and scores.is_whole(whole, columns):
        # the usual case, told without delay: only the last position, whose token was never fed back, has no row
        return RequestCoverage(present, whole, scores.n_cached(whole), (present - whole) * len(columns.ids))
    states = scores.states(0, n)
    has_row = states > 0
    if not columns.ids:
        cached = int(np.count_nonzero(states > 1))
        return RequestCoverage(present, int(np.count_nonzero(has_row)), cached, 0, _without_rows(present, has_row))
    cells = ~np.isnan(scores.values(0, n, columns)) & has_row[:, None]
    valued = cells.any(axis=1)
    return RequestCoverage(
        present,
        int(np.count_nonzero(valued)),
        int(np.count_nonzero(valued & (states > 1))),
        present * len(columns.ids) - int(np.count_nonzero(cells)),
        _bounded([*_without_rows(present, has_row), *_without_values(columns, cells, int(np.count_nonzero(has_row)))]),
    )


def _without_rows(present: int, has_row: np.ndarray) -> tuple[str, ...]:
    missing = present - int(np.count_nonzero(has_row))
    if missing == present and present > 1:
        return (f"no row of this request has come from the engine: {_SEE}",)
    if missing > 1:
        return (f"{missing - 1} positions have no row: cached without scores, dropped, or too late; {_SEE}",)
    return ()


def _without_values(columns: Columns, cells: np.ndarray, n_rows: int) -> list[str]:
    """Return for each site which of its probes have no value at positions that have a row."""
    lacking: dict[tuple[str, int], list[str]] = {}
    for name, site, found in zip(columns.ids, columns.sites, np.count_nonzero(cells, axis=0).tolist(), strict=True):
        if found < n_rows:
            lacking.setdefault((site, found), []).append(name)
    return [_reason(site, found, names, n_rows) for (site, found), names in lacking.items()]


def _reason(site: str, found: int, names: Sequence[str], n_rows: int) -> str:
    who = f"{', '.join(names[:_MOST_REASONS])}{' …' if names[_MOST_REASONS:] else ''} at {site}"
    if not found:
        return f"{who}: no value at any position: the tap did not run (model_tap_faults), or its values are no numbers; {_SEE}"
    return (
        f"{who}: no value at {n_rows - found} of {n_rows} positions: the probe was loaded later, the tap did not run "
        f"(model_tap_faults), or its values are no numbers; {_SEE}"
    )


def _bounded(reasons: Sequence[str]) -> tuple[str, ...]:
    more = len(reasons) - _MOST_REASONS
    return tuple(reasons) if more <= 0 else (*reasons[:_MOST_REASONS], f"and {more} more reasons of this kind")
