"""Statistics of a site's rows, as sums that a unit's receipt carries and the manifest combines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


class SiteSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over the finite rows of one site in one unit, in double precision of float32 values. JSON keeps them exactly."""

    rows: int
    """Rows that count: all of whose values are finite."""
    not_finite: int
    """Rows with an infinity or a NaN in them: stored, and not in any sum."""
    values: float
    """Sum of all values."""
    squares: float
    """Sum of their squares."""
    norms: float
    """Sum of the rows' Euclidean norms."""


class SiteStatistics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of all rows of a site. Multiply rows by sqrt(d_model) / mean_norm to train as SAELens's expected_average_only_in does."""

    rows: int
    not_finite: int
    mean: float | None
    """Of all values, over all dimensions."""
    std: float | None
    """Of all values around that mean; population form."""
    mean_norm: float | None


def sums_of(rows: Tensor) -> SiteSums:
    """Of rows [n, d], on the CPU."""
    import torch

    values = rows.to(torch.float32)
    norms = torch.linalg.vector_norm(values, dim=1).double()
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        values, norms = values[finite], norms[finite]
    return SiteSums(
        rows=len(norms),
        not_finite=len(rows) - len(norms),
        values=float(values.sum(dim=1).double().sum()),
        squares=float(norms.square().sum()),
        norms=float(norms.sum()),
    )


def added(parts: Iterable[SiteSums]) -> SiteSums:
    """The sums of all parts: rounded once, so the same for any grouping in the same order or another (Shewchuk's fsum)."""
    held = list(parts)
    return SiteSums(
        rows=sum(part.rows for part in held),
        not_finite=sum(part.not_finite for part in held),
        values=math.fsum(part.values for part in held),
        squares=math.fsum(part.squares for part in held),
        norms=math.fsum(part.norms for part in held),
    )


def statistics_of(sums: SiteSums, d_model: int) -> SiteStatistics:
    """What the sums say; None of everything where there is no row."""
    if not sums.rows:
        return SiteStatistics(rows=0, not_finite=sums.not_finite, mean=None, std=None, mean_norm=None)
    n = sums.rows * d_model
    mean = sums.values / n
    return SiteStatistics(
        rows=sums.rows,
        not_finite=sums.not_finite,
        mean=mean,
        std=math.sqrt(max(0.0, sums.squares / n - mean * mean)),
        mean_norm=sums.norms / sums.rows,
    )
