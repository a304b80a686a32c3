"""Features of recorded rows (latents of a sparse autoencoder, or probes) and the tokens on which they fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from actscope.analysis.growing import GrowingNpy
from actscope.analysis.sae import Sae, load_sae
from actscope.analysis.site import Progress, silent
from actscope.analysis.tokens import genuine
from actscope.errors import ProbeError
from actscope.near_miss import hinted
from actscope.probes import Probe, find_probes, load_probes
from actscope.probes.sae import is_encoder
from actscope.probes.sae.feature_labels import feature_labels
from actscope.recording.reading.recording import Recording

_BATCH_BYTES = 64 << 20


class FeatureSet(Protocol):
    """Features of one site. A feature fires on a token if its activation is above its threshold."""

    name: str
    site: str
    ids: Sequence[str]
    labels: Sequence[str]  # what each feature stands for, "" if that is not known
    thresholds: np.ndarray  # float32 [f]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the activations of rows [n, d], float32 [n, f]."""
        ...

    @property
    def width(self) -> int:
        """Width d of the rows that it reads."""
        ...


class SaeFeatures:
    """Latents of a sparse autoencoder. A latent fires above 0."""

    def __init__(self, sae: Sae, site: str, labels: Mapping[str, str] | None = None) -> None:
        self._sae = sae
        self.name, self.site = sae.name, site
        self.ids: Sequence[str] = [str(number) for number in range(sae.n_features)]
        self.labels: Sequence[str] = [(labels or {}).get(one, "") for one in self.ids]
        self.thresholds = np.zeros(sae.n_features, np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the activations of the latents on rows [n, d], float32 [n, f]."""
        return self._sae.encode(rows)

    @property
    def width(self) -> int:
        """Return the width d of the SAE's input."""
        return self._sae.d


class ProbeFeatures:
    """Probes of one site. A probe fires from its threshold on; without one, above 0 (sigmoid: above 0.5)."""

    def __init__(self, name: str, site: str, probes: Sequence[Probe]) -> None:
        self._probes = probes
        self.name, self.site = name, site
        self.ids: Sequence[str] = [probe.id for probe in probes]
        self.labels: Sequence[str] = [""] * len(probes)  # their ids say it
        self.thresholds = np.array([_fires_above(probe) for probe in probes], np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of the probes on rows [n, d], float32 [n, f]."""
        return np.stack([probe.score(rows) for probe in self._probes], axis=1)

    @property
    def width(self) -> int:
        """Return the width d of the probes' directions."""
        return self._probes[0].d


def _fires_above(probe: Probe) -> float:
    """Return the value above which a probe fires: the float32 just below its threshold, as the threshold itself fires."""
    if probe.info.threshold is None:
        return 0.5 if probe.info.activation == "sigmoid" else 0.0
    return float(np.nextafter(np.float32(probe.info.threshold), np.float32(-np.inf)))


@hinted
def load_features(recording: Recording, source: str) -> list[FeatureSet]:
    """Load feature sets that fit a recording.

    Args:
        recording: The recording.
        source: A path, or SITE=PATH: the file or folder of an autoencoder, or a folder of probes.

    Returns:
        One set for an autoencoder, or one per site for probes.

    Raises:
        ProbeError: There are no features at the path, their site is unknown or was not recorded, or their width differs.
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
    if is_encoder(path):
        sae = load_sae(path, site)
        return [SaeFeatures(sae, _recorded(recording, sae.site, path), feature_labels(path))]
    if not any(find_probes(path)):
        raise ProbeError(f"{path}: neither an autoencoder nor a folder of probes")
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
    """Return the recorded equivalent of a block's input: the output of the block before it."""
    parts = site.split(".")
    if len(parts) == 3 and parts[2] == "resid_pre" and int(parts[1]) > 0:
        return f"layers.{int(parts[1]) - 1}.resid_post"
    return site


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the tokens with a feature's highest activations. `text` is None if the token's text was not recorded."""

    activation: float
    request: str
    position: int
    token_id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class FeatureStats:
    """Statistics of one feature.

    Attributes:
        id: Id of the feature.
        label: What it stands for, "" if that is not known.
        fired: Number of tokens on which it fires.
        rate: Share of tokens on which it fires.
        mean: Mean activation on those tokens.
        max: Largest activation.
        top: Tokens with the highest activations, the highest first.
    """

    id: str
    label: str
    fired: int
    rate: float
    mean: float
    max: float
    top: list[TopToken]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureReport:
    """Statistics of a feature set on a recording.

    Attributes:
        name: Name of the set.
        site: Site that the features read.
        n_features: Number of features.
        rows: Number of rows measured.
        dead: Number of features that never fired.
        mean_fired: Mean number of features that fire on a token (L0).
        stats: The features that fired, most often first.
        sparse: Folder with the activations as a sparse matrix, or None.
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
        """Return the report as JSON values, with the first `limit` features (0: all)."""
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
    """The k highest activations of each feature so far, unordered, and the numbers of their rows: [k, f]."""

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


@hinted
def measure_features(
    recording: Recording, features: FeatureSet, to: Path | None = None, *, top: int = 10, progress: Progress = silent
) -> FeatureReport:
    """Encode the rows of a feature set's site, batch by batch, and count which features fire.

    Each token counts once, by the row that was computed last. Rows that are not finite are skipped.

    Args:
        recording: The recording.
        features: The feature set.
        to: A folder for the activations of firing features, or None. They are written as a sparse matrix (CSR) in .npy files:
            `indptr` int64 [rows + 1], `indices` int32, `values` float32, and for each row `row_ids` int64, `request` int32 and
            `position` int64.
        top: Number of tokens with the highest activations to keep for each feature.
        progress: Callback for progress, in rows.

    Returns:
        The statistics.

    Raises:
        SiteError: The site of the set is not in the recording.
        RecordingDamaged: A block cannot be read.
        OSError: The folder cannot be written.
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
    """Counts and sums [f] of a feature set so far, and the tokens with the highest activations."""

    def __init__(self, features: FeatureSet, top: int) -> None:
        f = len(features.ids)
        self._features = features
        self.rows = 0
        self.fired = np.zeros(f, np.int64)
        self._sums = np.zeros(f)
        self._best = _Top(np.full((top, f), -np.inf, np.float32), np.full((top, f), -1, np.int64))

    def add(self, rows: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add rows [n, d] with their numbers in the site [n]. Returns the activations and which of them fire, both [n, f]."""
        activations = self._features.encode(rows)
        fires = activations > self._features.thresholds
        self.rows += len(rows)
        self.fired += fires.sum(axis=0)
        self._sums += np.where(fires, activations, 0).sum(axis=0, dtype=np.float64)
        self._best.add(np.where(fires, activations, -np.inf), numbers)
        return activations, fires

    def stats(self, recording: Recording, labels: np.ndarray) -> list[FeatureStats]:
        """Return the statistics of the features that fired, most often first."""
        requests = recording.requests
        order = np.argsort(-self.fired, kind="stable")
        return [self._stats_of(j, recording, requests, labels) for j in order[self.fired[order] > 0].tolist()]

    def _stats_of(self, j: int, recording: Recording, requests: list[str], labels: np.ndarray) -> FeatureStats:
        fired = int(self.fired[j])
        values, rows = self._best.values[:, j], self._best.rows[:, j]
        places = [place for place in np.argsort(-values, kind="stable").tolist() if rows[place] >= 0]
        top = [_token(float(values[place]), labels[rows[place]], recording, requests) for place in places]
        rate, mean = fired / self.rows, float(self._sums[j] / fired)
        of = self._features
        return FeatureStats(of.ids[j], of.labels[j], fired, rate, mean, top[0].activation, top)


def _token(activation: float, label: np.void, recording: Recording, requests: list[str]) -> TopToken:
    token = int(label["token_id"])
    return TopToken(
        activation, requests[int(label["request"])], int(label["position"]), token, recording.texts.get(token)
    )


@dataclass(slots=True)
class _SparseFile:
    """Writer of the sparse matrix; without a path it writes nothing."""

    path: Path | None
    _files: dict[str, GrowingNpy] = field(default_factory=dict)
    _stored: int = 0

    def __enter__(self) -> _SparseFile:
        if self.path is not None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
