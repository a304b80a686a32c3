"""Features of recorded rows: latents of a sparse autoencoder, or probes. What fires on which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from actscope.analysis.growing import GrowingNpy
from actscope.analysis.sae import Sae, load_sae
from actscope.analysis.site import Progress, silent
from actscope.analysis.tokens import genuine
from actscope.errors import ProbeError
from actscope.probes import Probe, find_probes, load_probes
from actscope.recording.reading.recording import Recording

_BATCH_BYTES = 64 << 20


class FeatureSet(Protocol):
    """Features of one site. A feature fires on a token where its activation is above its threshold."""

    name: str
    site: str
    ids: Sequence[str]
    thresholds: np.ndarray  # float32 [f]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Activations float32 [n, f] of rows [n, d]."""
        ...

    @property
    def width(self) -> int:
        """d of the rows that it reads."""
        ...


class SaeFeatures:
    """The latents of an autoencoder; one fires where it is above 0."""

    def __init__(self, sae: Sae, site: str) -> None:
        self._sae = sae
        self.name, self.site = sae.name, site
        self.ids: Sequence[str] = [str(number) for number in range(sae.n_features)]
        self.thresholds = np.zeros(sae.n_features, np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return self._sae.encode(rows)

    @property
    def width(self) -> int:
        return self._sae.d


class ProbeFeatures:
    """The probes of one site; one fires at its own threshold, else above 0 (sigmoid: above 0.5)."""

    def __init__(self, name: str, site: str, probes: Sequence[Probe]) -> None:
        self._probes = probes
        self.name, self.site = name, site
        self.ids: Sequence[str] = [probe.id for probe in probes]
        self.thresholds = np.array([_fires_above(probe) for probe in probes], np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([probe.score(rows) for probe in self._probes], axis=1)

    @property
    def width(self) -> int:
        return self._probes[0].d


def _fires_above(probe: Probe) -> float:
    """A probe's threshold itself counts as firing; nothing lies between it and the next smaller float32."""
    if probe.info.threshold is None:
        return 0.5 if probe.info.activation == "sigmoid" else 0.0
    return float(np.nextafter(np.float32(probe.info.threshold), np.float32(-np.inf)))


def load_features(recording: Recording, source: str) -> list[FeatureSet]:
    """Feature sets of a path, or of SITE=PATH: an autoencoder's file or folder, or a folder of probes (a set for each site).

    Raises ProbeError when there is none, when its site was not recorded or is not known, and when its width is another.
    """
    site, equals, text = source.partition("=")
    path = Path(text if equals else source)
    sets = _sets(recording, path, site if equals else None)
    for features in sets:
        width = recording[features.site].width
        if width != features.width:
            raise ProbeError(
                f"{path}: {features.name} reads rows of width {features.width}; {features.site} has width {width}"
            )
    return sets


def _sets(recording: Recording, path: Path, site: str | None) -> list[FeatureSet]:
    if not path.exists():
        raise ProbeError(f"{path}: no such file or folder; expected an autoencoder, or a folder of probes")
    if path.is_file() or (path / "cfg.json").is_file():
        sae = load_sae(path, site)
        return [SaeFeatures(sae, _recorded(recording, sae.site, path))]
    if not any(find_probes(path)):
        raise ProbeError(f"{path}: neither an autoencoder (cfg.json, or a .safetensors file) nor a folder of probes")
    by_site: dict[str, list[Probe]] = {}
    for probe in load_probes(path):
        by_site.setdefault(site or probe.info.site, []).append(probe)
    kept = {_recorded(recording, at, path): probes for at, probes in by_site.items() if site or at in recording.sites}
    if not kept:
        raise ProbeError(f"{path}: its probes are of {', '.join(by_site)}; recorded are {', '.join(recording.sites)}")
    return [ProbeFeatures(path.name, at, probes) for at, probes in sorted(kept.items())]


def _recorded(recording: Recording, site: str | None, path: Path) -> str:
    if site is None:
        raise ProbeError(f"{path}: it does not say which site it reads; give SITE={path}")
    if site in recording.sites:
        return site
    same = _same_stream(site)
    if same in recording.sites:
        return same
    raise ProbeError(f"{path}: it reads {site}, which was not recorded; recorded are {', '.join(recording.sites)}")


def _same_stream(site: str) -> str:
    """What goes into a block is what came out of the one before it."""
    parts = site.split(".")
    if len(parts) == 3 and parts[2] == "resid_pre" and int(parts[1]) > 0:
        return f"layers.{int(parts[1]) - 1}.resid_post"
    return site


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the tokens on which a feature was highest."""

    activation: float
    request: str
    position: int
    token_id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class FeatureStats:
    """One feature: how often it fires, its mean where it fires, its maximum, and where it was highest."""

    id: str
    fired: int
    rate: float
    mean: float
    max: float
    top: list[TopToken]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureReport:
    """A feature set on a recording. `stats` has the features that fired, most often first; the others are `dead`.

    mean_fired is the mean number of features that fire on a token (L0). `sparse` is the folder with the activations, if kept.
    """

    name: str
    site: str
    n_features: int
    rows: int
    dead: int
    mean_fired: float
    stats: list[FeatureStats]
    sparse: Path | None

    def as_dict(self, limit: int = 0) -> dict[str, object]:
        """JSON values; `limit` features are listed (0: all)."""
        from dataclasses import asdict

        kept = {name: getattr(self, name) for name in ("name", "site", "n_features", "rows", "dead", "mean_fired")}
        listed = self.stats[: limit or None]
        return {
            **kept,
            "sparse": str(self.sparse) if self.sparse else None,
            "features": [asdict(one) for one in listed],
        }


@dataclass(slots=True)
class _Top:
    """The k highest activations of each feature so far, and their rows: [k, f]."""

    values: np.ndarray
    rows: np.ndarray

    def add(self, activations: np.ndarray, rows: np.ndarray) -> None:
        k = len(self.values)
        alive = np.flatnonzero(activations.max(axis=0, initial=-np.inf) > self.values.min(axis=0))
        values = np.concatenate([self.values[:, alive], activations[:, alive]])
        numbers = np.concatenate([self.rows[:, alive], np.broadcast_to(rows[:, None], (len(rows), len(alive)))])
        best = np.argpartition(-values, k - 1, axis=0)[:k]
        self.values[:, alive] = np.take_along_axis(values, best, axis=0)
        self.rows[:, alive] = np.take_along_axis(numbers, best, axis=0)


def measure_features(
    recording: Recording, features: FeatureSet, to: Path | None = None, *, top: int = 10, progress: Progress = silent
) -> FeatureReport:
    """Encode all rows of the set's site, batch by batch (each token once, as it was computed last; rows that are not finite not).

    With `to`, a folder, the activations that fire are kept there as a sparse matrix, row after row (CSR), in plain .npy files:
    `indptr` int64 [rows + 1], `indices` int32, `values` float32, and `row_ids` int64, `request` int32, `position` int64 [rows].
    """
    found = recording[features.site]
    counted, tally = genuine(found.labels), _Tally(features, top)
    batch_rows = max(1, _BATCH_BYTES // (4 * max(len(features.ids), found.width)))
    with _SparseFile(to) as sparse:
        start = 0
        for batch in recording.iter_rows(features.site, batch_rows):
            mine = np.flatnonzero(counted[start : start + len(batch)])
            mine = mine[np.isfinite(batch.values[mine]).all(axis=1)]
            activations, fires = tally.add(batch.values[mine], start + mine)
            sparse.add(found.row_ids[start + mine], batch.labels[mine], activations, fires)
            start += len(batch)
            progress(f"{features.name} at {features.site}", start, len(found))
    stats = tally.stats(recording, found.labels)
    mean_fired = float(tally.fired.sum() / max(1, tally.rows))
    f = len(features.ids)
    return FeatureReport(features.name, features.site, f, tally.rows, f - len(stats), mean_fired, stats, to)


class _Tally:
    """Counts, sums [f] and the highest tokens of a feature set so far."""

    def __init__(self, features: FeatureSet, top: int) -> None:
        f = len(features.ids)
        self._features = features
        self.rows = 0
        self.fired = np.zeros(f, np.int64)
        self._sums = np.zeros(f)
        self._best = _Top(np.full((top, f), -np.inf, np.float32), np.full((top, f), -1, np.int64))

    def add(self, rows: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in rows [n, d], which are the site's rows of these numbers [n]. Activations and what fires [n, f]."""
        activations = self._features.encode(rows)
        fires = activations > self._features.thresholds
        self.rows += len(rows)
        self.fired += fires.sum(axis=0)
        self._sums += np.where(fires, activations, 0).sum(axis=0, dtype=np.float64)
        self._best.add(np.where(fires, activations, -np.inf), numbers)
        return activations, fires

    def stats(self, recording: Recording, labels: np.ndarray) -> list[FeatureStats]:
        """The features that fired, most often first."""
        requests = recording.requests
        order = np.argsort(-self.fired, kind="stable")
        return [self._stats_of(j, recording, requests, labels) for j in order[self.fired[order] > 0].tolist()]

    def _stats_of(self, j: int, recording: Recording, requests: list[str], labels: np.ndarray) -> FeatureStats:
        fired = int(self.fired[j])
        values, rows = self._best.values[:, j], self._best.rows[:, j]
        places = [place for place in np.argsort(-values, kind="stable").tolist() if rows[place] >= 0]
        top = [_token(float(values[place]), labels[rows[place]], recording, requests) for place in places]
        rate, mean = fired / self.rows, float(self._sums[j] / fired)
        return FeatureStats(self._features.ids[j], fired, rate, mean, top[0].activation, top)


def _token(activation: float, label: np.void, recording: Recording, requests: list[str]) -> TopToken:
    token = int(label["token_id"])
    return TopToken(
        activation, requests[int(label["request"])], int(label["position"]), token, recording.texts.get(token)
    )


@dataclass(slots=True)
class _SparseFile:
    """The matrix as it grows; with no path nothing is kept."""

    path: Path | None
    _files: dict[str, GrowingNpy] = field(default_factory=dict)
    _stored: int = 0

    def __enter__(self) -> _SparseFile:
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            kinds = {
                "indptr": "<i8",
                "indices": "<i4",
                "values": "<f4",
                "row_ids": "<i8",
                "request": "<i4",
                "position": "<i8",
            }
            self._files = {name: GrowingNpy(self.path / f"{name}.npy", np.dtype(kind)) for name, kind in kinds.items()}
            self._files["indptr"].add(np.zeros(1, np.int64))
        return self

    def add(self, row_ids: np.ndarray, labels: np.ndarray, activations: np.ndarray, fires: np.ndarray) -> None:
        if self.path is None:
            return
        row, feature = np.nonzero(fires)
        ends = self._stored + np.cumsum(fires.sum(axis=1))
        self._stored += len(row)
        parts = {"indptr": ends, "indices": feature, "values": activations[row, feature], "row_ids": row_ids}
        for name, values in {**parts, "request": labels["request"], "position": labels["position"]}.items():
            self._files[name].add(values)

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
