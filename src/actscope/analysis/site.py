"""Statistics of one site's rows, computed in one pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.analysis.drift import Bin, Drift
from actscope.analysis.moments import Covariance, Moments
from actscope.analysis.options import SiteOptions
from actscope.analysis.outliers import Massive, OutlierDimension, outlier_dimensions
from actscope.analysis.spectrum import Spectrum
from actscope.analysis.tokens import genuine
from actscope.near_miss import hinted
from actscope.recording.reading.recording import Recording

#: Progress callback, called with (name of the stage, units done, units in total).
Progress = Callable[[str, int, int], None]
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class NormStats:
    """L2 norms of rows: population std; quantiles with numpy's linear interpolation."""

    mean: float
    std: float
    min: float
    max: float
    quantiles: dict[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class SiteStats:
    """Statistics of one site.

    Attributes:
        site: Name of the site.
        width: Width of a row.
        dtype: Element type in which the rows were recorded.
        rows: Number of rows measured.
        left_out: Rows ignored because they are spurious or were computed again later.
        non_finite: Rows ignored because they contain NaN or infinity.
        norms: L2 norms of the rows.
        moments: Moments of each dimension.
        dead_dimensions: Number of dimensions that are constant.
        outliers: Outlier dimensions, the furthest first.
        massive: Massive activations.
        spectrum: Spectrum of the covariance, or None if it was omitted.
        drift: Norm and direction by position.
        stored_per_token: Bytes per row on disk.
        fp32_per_token: Bytes per row as float32.
        source_per_token: Bytes per row in the source's dtype.
    """

    site: str
    width: int
    dtype: str
    rows: int
    left_out: int
    non_finite: int
    norms: NormStats
    moments: Moments
    dead_dimensions: int
    outliers: list[OutlierDimension]
    massive: Massive
    spectrum: Spectrum | None
    drift: list[Bin]
    stored_per_token: float
    fp32_per_token: float
    source_per_token: float

    def as_dict(self) -> dict[str, object]:
        """Return the statistics as JSON values, without arrays of width d."""
        spectrum = self.spectrum
        return {
            "site": self.site,
            "width": self.width,
            "dtype": self.dtype,
            "rows": self.rows,
            "left_out": self.left_out,
            "non_finite": self.non_finite,
            "norms": {**_fields(self.norms), "quantiles": {str(q): v for q, v in self.norms.quantiles.items()}},
            "dimensions": {
                "mean_abs_mean": float(np.abs(self.moments.mean).mean()),
                "mean_std": float(self.moments.std.mean()),
                "median_skewness": _median(self.moments.skewness),
                "median_excess_kurtosis": _median(self.moments.kurtosis),
                "dead": self.dead_dimensions,
            },
            "outliers": [_fields(outlier) for outlier in self.outliers],
            "massive": {
                **_fields(self.massive),
                "by_dimension": {
                    str(j): n for j, n in sorted(self.massive.by_dimension.items(), key=lambda e: -e[1])[:32]
                },
                "positions": {str(p): n for p, n in sorted(self.massive.positions.items(), key=lambda e: -e[1])[:32]},
            },
            "spectrum": None
            if spectrum is None
            else {
                "rows": spectrum.rows,
                "effective_rank": spectrum.effective_rank,
                "participation_ratio": spectrum.participation_ratio,
                "n_90": spectrum.n_for(0.9),
                "n_99": spectrum.n_for(0.99),
            },
            "drift": [_fields(part) for part in self.drift],
            "bytes_per_token": {
                "stored": self.stored_per_token,
                "fp32": self.fp32_per_token,
                "source": self.source_per_token,
            },
        }


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _median(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


@hinted
def measure(
    recording: Recording, site: str, options: SiteOptions | None = None, progress: Progress = silent
) -> SiteStats | None:
    """Measure one site, batch by batch.

    Each token counts once, by the row that was computed last. Rejected drafts and rows after the end of a request do not
    count. Memory use: one batch, the norms (4 bytes per row) and the covariance.

    Args:
        recording: The recording.
        site: Name of the site.
        options: Options; None for the defaults.
        progress: Callback for progress, in rows.

    Returns:
        The statistics, or None if the site has no rows to measure.

    Raises:
        SiteError: The site is not in the recording.
        RecordingDamaged: A block cannot be read.
    """
    options = options or SiteOptions()
    found = recording[site]
    counted = genuine(found.labels)
    sums = _Sums(found.width, int(counted.sum()), options)
    batch_rows = max(1, options.batch_bytes // (8 * max(1, found.width)))
    done = 0
    for batch in recording.iter_rows(site, batch_rows):
        mine = counted[done : done + len(batch)]
        done += len(batch)
        sums.add(batch.values[mine].astype(np.float64), batch.labels["position"][mine])
        progress(site, done, len(found))
    if not sums.moments.n:
        return None
    sizes, moments = found.sizes(), sums.moments
    return SiteStats(
        site=site,
        width=found.width,
        dtype=found.source_dtype,
        rows=moments.n,
        left_out=int((~counted).sum()),
        non_finite=sums.non_finite,
        norms=_norm_stats(np.concatenate(sums.norms)),
        moments=moments,
        dead_dimensions=int((moments.m2 == 0).sum()),
        outliers=outlier_dimensions(moments, options.sigmas),
        massive=sums.massive,
        spectrum=sums.spectrum(),
        drift=sums.drift.bins(moments.mean),
        stored_per_token=sizes.stored / len(found),
        fp32_per_token=4.0 * found.width,
        source_per_token=sizes.source / max(1, int(found.blocks.keys["n_rows"].sum())),
    )


class _Sums:
    def __init__(self, d: int, rows: int, options: SiteOptions) -> None:
        self.moments, self.massive, self.drift = Moments(d), Massive(), Drift(d)
        self.norms: list[np.ndarray] = []
        self.non_finite = 0
        self._share = min(1.0, options.spectrum_rows / max(1, rows))
        self._covariance = Covariance(d) if options.spectrum_rows and d <= options.spectrum_width else None
        self._draw = np.random.default_rng(0)

    def add(self, rows: np.ndarray, positions: np.ndarray) -> None:
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            self.non_finite += int((~finite).sum())
            rows, positions = rows[finite], positions[finite]
        norms = np.linalg.norm(rows, axis=1)
        self.norms.append(norms.astype(np.float32))
        self.moments.add(rows)
        self.massive.add(rows, positions)
        self.drift.add(rows, norms, positions)
        if self._covariance is not None:
            self._covariance.add(rows if self._share == 1 else rows[self._draw.random(len(rows)) < self._share])

    def spectrum(self) -> Spectrum | None:
        if self._covariance is None or not self._covariance.n:
            return None
        return Spectrum.of(self._covariance.matrix, self._covariance.n)


def _norm_stats(norms: np.ndarray) -> NormStats:
    wide = norms.astype(np.float64)
    quantiles = np.quantile(wide, QUANTILES).tolist()
    return NormStats(
        float(wide.mean()),
        float(wide.std()),
        float(wide.min()),
        float(wide.max()),
        dict(zip(QUANTILES, quantiles, strict=True)),
    )
