"""Statistics of a site's rows. Receipts contain the sums of their units, and the manifest combines them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


#: Numbers of rows, texts and bytes, and sums of values, such that their own sums stay finite.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Sum = Annotated[float, msgspec.Meta(ge=-1e150, le=1e150)]


class SiteSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over the finite rows of one site in one unit: float32 within a row, float64 over rows. JSON keeps them exactly."""

    rows: Count
    """Number of rows in the sums: those whose L2 norm, in float32, is finite."""
    not_finite: Count
    """Number of other rows, for instance with an infinity or a NaN. They are stored, but not in any sum."""
    values: Sum
    """Sum of all values."""
    squares: Sum
    """Sum of their squares, from the rows' norms."""
    norms: Sum
    """Sum of the rows' L2 norms."""


class SiteStatistics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Statistics of all rows of a site; None where there are no rows.

    Rows multiplied by sqrt(d_model) / mean_norm are normalized as in SAELens's `expected_average_only_in`.
    """

    rows: int
    not_finite: int
    mean: float | None
    """Mean of all values, over all dimensions."""
    std: float | None
    """Population standard deviation of all values around that mean."""
    mean_norm: float | None
    """Mean L2 norm of a row."""


def sums_of(rows: Tensor) -> SiteSums:
    """Return the sums over rows [n, d], which are on the CPU."""
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
    """Add the sums of all parts. Each result is rounded once, so the order of the parts does not matter (Shewchuk's fsum)."""
    held = list(parts)
    return SiteSums(
        rows=sum(part.rows for part in held),
        not_finite=sum(part.not_finite for part in held),
        values=math.fsum(part.values for part in held),
        squares=math.fsum(part.squares for part in held),
        norms=math.fsum(part.norms for part in held),
    )


def statistics_of(sums: SiteSums, d_model: int) -> SiteStatistics:
    """Return the statistics that follow from sums over rows of width `d_model`."""
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
