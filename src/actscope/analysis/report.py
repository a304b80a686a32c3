"""Complete analysis of a recording, and the folder to which it is written.

report.json              everything but arrays of a row's width
dimensions/<site>.npz    mean, std, skewness, kurtosis [d] and, if measured, eigenvalues [d]
features/<set>/*.npy     activations of firing features, as a sparse matrix (see `features.measure_features`)
graph.json, graph.graphml
norms.png, norms.dark.png …
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np

from actscope.analysis.features import FeatureReport, FeatureSet, load_features, measure_features
from actscope.analysis.graph import Graph, feature_graph
from actscope.analysis.options import AnalysisOptions
from actscope.analysis.plots import plot_graph, plot_sites
from actscope.analysis.site import Progress, SiteStats, measure, silent
from actscope.analysis.tokens import depth
from actscope.errors import ActscopeError, RecordingError
from actscope.extras import require
from actscope.near_miss import hinted
from actscope.recording.export.publishing import staged
from actscope.recording.reading.recording import Recording
from actscope.runtime.publish import publish_file
from actscope.runtime.writable import check_can_create

_REPORT = "report.json"
_PARTS = (_REPORT, "dimensions", "features", "graph.json", "graph.graphml")


@dataclass(frozen=True, slots=True, eq=False)
class AnalysisReport:
    """Results of an analysis, and the files that were written.

    Attributes:
        path: Directory of the recording.
        rows: Number of labelled rows of the recording. A row is one token at every site.
        sites: Statistics of the sites that have rows, from the first to the last in the model.
        features: Statistics of the feature sets, in the order of the options.
        graph: Graph of dependence, or None if it was not requested.
        files: Files that were written; empty without a folder.
    """

    path: Path
    rows: int
    sites: list[SiteStats]
    features: list[FeatureReport]
    graph: Graph | None
    files: list[Path]

    def as_dict(self, features: int = 0) -> dict[str, object]:
        """Return the report as JSON values, with the first `features` features of each set (0: all)."""
        stored = sum(stats.stored_per_token for stats in self.sites)
        return {
            "recording": str(self.path),
            "rows": self.rows,
            "bytes_per_token": stored,
            "sites": [stats.as_dict() for stats in self.sites],
            "features": [report.as_dict(features) for report in self.features],
            "graph": None if self.graph is None else self.graph.as_dict(),
            "files": [str(file) for file in self.files],
        }


@hinted
def analyze(
    recording: Recording, options: AnalysisOptions | None = None, to: Path | None = None, progress: Progress = silent
) -> AnalysisReport:
    """Measure a recording's sites, features and their graph.

    Args:
        recording: The recording.
        options: Options; None for the defaults.
        to: A folder for the results, which appears whole or not at all. An earlier report there is replaced. None writes nothing.
        progress: Callback for progress.

    Returns:
        The results and the paths of the files.

    Raises:
        SiteError: A selected site is not in the recording.
        RecordingError: No selected site has rows, no token has rows at all sites of the graph, or the folder cannot be
            written to, or holds something else than an earlier report.
        RecordingDamaged: A block of the recording cannot be read.
        ProbeError: Features cannot be read, or do not fit the recording.
        SettingsError: There are too many pairs of features for the graph.
        MissingExtra: A library for the graph or the plots is not installed.
    """
    options = options or AnalysisOptions()
    _require_packages(options, to)
    if to is None:
        return _measured(recording, options, None, progress)
    to = to.absolute()
    _check_free(to)
    try:
        with staged(to) as folder:
            folder.mkdir(mode=0o700)
            report = _moved(_measured(recording, options, folder, progress), folder, to)
            publish_file(folder / _REPORT, msgspec.json.format(msgspec.json.encode(report.as_dict()), indent=1))
    except OSError as error:
        if isinstance(error, ActscopeError):
            raise
        raise RecordingError(
            f"{to}: the report cannot be written ({error.strerror or error}), and nothing of it is there: make room, or choose "
            "another folder"
        ) from error
    return report


def _measured(recording: Recording, options: AnalysisOptions, to: Path | None, progress: Progress) -> AnalysisReport:
    """Measure a recording, and write everything but the report itself."""
    sets = [features for source in options.features for features in load_features(recording, source)]
    names = sorted(options.sites or recording.sites, key=depth)
    measured = [measure(recording, site, options.site, progress) for site in names]
    sites = [stats for stats in measured if stats is not None]
    if not sites:
        raise RecordingError(f"{recording.path}: no rows at {', '.join(names)}: nothing to analyse")
    folders = _folders(sets, to)
    reports = [measure_features(recording, f, at, progress=progress) for f, at in zip(sets, folders, strict=True)]
    graph = feature_graph(recording, sets, options.graph_options, progress) if options.graph else None
    files: list[Path] = []
    if to is not None:
        files = [*_save_dimensions(sites, to), *[f for at in folders if at for f in sorted(at.iterdir())]]
        files += graph.save(to) if graph is not None else []
        if options.plots:
            files += plot_sites(sites, to)
            files += plot_graph(graph, to) if graph is not None and graph.edges else []
        files.append(to / _REPORT)
    return AnalysisReport(recording.path, recording.n_rows, sites, reports, graph, files)


def _moved(report: AnalysisReport, old: Path, new: Path) -> AnalysisReport:
    """Return a report with its paths in `new` instead of `old`."""
    features = [
        replace(found, sparse=found.sparse and new / found.sparse.relative_to(old)) for found in report.features
    ]
    return replace(report, features=features, files=[new / file.relative_to(old) for file in report.files])


def _check_free(to: Path) -> None:
    """Raise RecordingError unless a report can be put there: in place of nothing, an empty folder, or an earlier report."""
    check_can_create(to, "--to", RecordingError, within=to.parent)
    if not os.path.lexists(to):
        return
    if to.is_symlink() or not to.is_dir():
        raise RecordingError(f"{to}: is no folder: choose another place for the report")
    if to.is_mount():
        raise RecordingError(f"{to}: is a mount point, which cannot be replaced as a whole: name a folder in it")
    found = sorted(path.name for path in to.iterdir())
    if found and _REPORT not in found:
        raise RecordingError(f"{to}: is neither empty nor an earlier report: choose another folder")
    others = [name for name in found if name not in _PARTS and not name.endswith(".png")]
    if others:
        raise RecordingError(
            f"{to}: holds {others[0]}, which is of no report, and would be lost: choose another folder"
        )


def _require_packages(options: AnalysisOptions, to: Path | None) -> None:
    """Raise MissingExtra if a library for the graph or the plots is not installed."""
    plots = ("matplotlib",) if options.plots and to is not None else ()
    graph = ("scipy", "networkx") if options.graph else ()
    if plots or graph:
        require("analyze", *plots, *graph)


def _folders(sets: Sequence[FeatureSet], to: Path | None) -> list[Path | None]:
    """Return a folder for each set. Sets with the same name and site get their number as a suffix."""
    if to is None:
        return [None] * len(sets)
    names = [quote(f"{features.name}@{features.site}", safe="@") for features in sets]
    return [
        to / "features" / (name if names.count(name) == 1 else f"{name}.{number}") for number, name in enumerate(names)
    ]


def _save_dimensions(sites: list[SiteStats], to: Path) -> list[Path]:
    folder = to / "dimensions"
    folder.mkdir(mode=0o700, exist_ok=True)
    files = []
    for stats in sites:
        m = stats.moments
        arrays = {"mean": m.mean, "std": m.std, "skewness": m.skewness, "kurtosis": m.kurtosis}
        if stats.spectrum is not None:
            arrays["eigenvalues"] = stats.spectrum.eigenvalues
        files.append(folder / f"{quote(stats.site, safe='')}.npz")
        np.savez(files[-1], allow_pickle=False, **arrays)
    return files
