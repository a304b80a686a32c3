"""Features of recorded rows: latents of a sparse autoencoder, or probes. What fires on which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actscope.analysis.growing import GrowingNpy
from actscope.analysis.sae import Sae, load_sae
from actscope.analysis.site import Progress, silent
from actscope.analysis.tokens import genuine
from actscope.errors import ProbeError
from actscope.probes import Probe, find_probes, load_probes
from actscope.recording.reader import Recording

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

    def as_dict(self, limit: int = 0) -> dict[str, Any]:
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
    """Encode all rows of the set's site, batch by batch (each token once, as it was computed last).

    With `to`, a folder, the activations that fire are kept there as a sparse matrix, row after row (CSR), in plain .npy files:
    `indptr` int64 [rows + 1], `indices` int32, `values` float32, and `row_ids` int64, `request` int32, `position` int64 [rows].
    """
    found, f = recording[features.site], len(features.ids)
    counted = genuine(found.labels)
    fired, sums = np.zeros(f, np.int64), np.zeros(f)
    maximum = np.full(f, -np.inf, np.float32)
    best = _Top(np.full((top, f), -np.inf, np.float32), np.full((top, f), -1, np.int64))
    batch_rows = max(1, _BATCH_BYTES // (4 * max(f, found.width)))
    with _SparseFile(to) as sparse:
        for start, batch in zip(
            range(0, len(found), batch_rows), recording.iter_rows(features.site, batch_rows), strict=True
        ):
            mine = np.flatnonzero(counted[start : start + len(batch)])
            values = batch.values[mine]
            mine = mine[np.isfinite(values).all(axis=1)]
            activations = features.encode(batch.values[mine])
            fires = activations > features.thresholds
            fired += fires.sum(axis=0)
            sums += np.where(fires, activations, 0).sum(axis=0, dtype=np.float64)
            maximum = np.maximum(maximum, activations.max(axis=0, initial=-np.inf))
            best.add(np.where(fires, activations, -np.inf), start + mine)
            sparse.add(found.row_ids[start + mine], batch.labels[mine], activations, fires)
            progress(f"{features.name} at {features.site}", min(len(found), start + batch_rows), len(found))
    rows = int(counted.sum())
    order = np.argsort(-fired, kind="stable")
    stats = [
        FeatureStats(
            features.ids[j],
            int(fired[j]),
            float(fired[j] / rows),
            float(sums[j] / fired[j]),
            float(maximum[j]),
            _top_tokens(recording, found.labels, best, j),
        )
        for j in order.tolist()
        if fired[j]
    ]
    kept = sparse.path
    return FeatureReport(
        features.name, features.site, f, rows, f - len(stats), float(fired.sum() / max(1, rows)), stats, kept
    )


def _top_tokens(recording: Recording, labels: np.ndarray, best: _Top, feature: int) -> list[TopToken]:
    order = np.argsort(-best.values[:, feature], kind="stable")
    tokens = []
    for place in order.tolist():
        row = int(best.rows[place, feature])
        if row >= 0 and np.isfinite(best.values[place, feature]):
            label = labels[row]
            token = int(label["token_id"])
            tokens.append(
                TopToken(
                    float(best.values[place, feature]),
                    recording.requests[int(label["request"])],
                    int(label["position"]),
                    token,
                    recording.texts.get(token),
                )
            )
    return tokens


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
