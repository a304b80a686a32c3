"""Selection of rows to export, and their batched reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypedDict

import numpy as np

from actscope.codecs import itemsize, to_float32
from actscope.errors import RecordingError, SiteError
from actscope.near_miss import hinted_class
from actscope.recording.export.options import ExportOptions
from actscope.recording.reading.recording import Recording
from actscope.sites import Site, foreign_hint, select


@hinted_class
@dataclass(frozen=True, slots=True)
class Selection:
    """Selected sites (empty: all), requests (empty: all) and range of positions (None: all)."""

    sites: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    positions: slice | None = None

    def mask(self, recording: Recording, labels: np.ndarray) -> np.ndarray:
        """Return which rows of `labels` are selected, bool [n].

        Raises:
            RecordingError: A request is not in the recording, or `positions` is not a range from 0 up.
        """
        chosen = np.ones(len(labels), bool)
        if self.requests:
            known = {request: number for number, request in enumerate(recording.requests)}
            absent = [request for request in self.requests if request not in known]
            if absent:
                shown = ", ".join(list(known)[:5]) + " …" * (len(known) > 5)
                raise RecordingError(f"{recording.path} has no request {absent[0]!r}; it has {len(known)}: {shown}")
            chosen &= np.isin(labels["request"], [known[request] for request in self.requests])
        if self.positions is not None:
            chosen &= _in_slice(labels["position"], self.positions)
        return chosen


def _in_slice(positions: np.ndarray, wanted: slice) -> np.ndarray:
    start, stop, step = wanted.start or 0, wanted.stop, wanted.step or 1
    if start < 0 or (stop is not None and stop < 0) or step < 1:
        raise RecordingError(f"positions {start}:{stop}:{step}: expected a range of positions from 0 up, such as 0:100")
    inside = (positions >= start) & ((positions - start) % step == 0)
    return np.asarray(inside if stop is None else inside & (positions < stop))


def choose_sites(recording: Recording, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the recorded sites that match the items, in the recording's order. No items: all sites.

    Items are full names, patterns (`layers.*.mlp_out`) or the grammar of `actscope.sites` (`0,7`, `first,last`).

    Raises:
        SiteError: An item matches no site.
    """
    items = [part.strip() for item in wanted for part in item.split(",") if part.strip()]
    found: set[str] = set()
    for item in items:
        named = {site for site in recording.sites if fnmatchcase(site, item)} or _by_grammar(recording, item)
        if not named:
            raise SiteError(
                f"{recording.path} has no site {item!r}; it has {', '.join(recording.sites)}{foreign_hint(item)}"
            )
        found |= named
    return tuple(site for site in recording.sites if not items or site in found)


def _by_grammar(recording: Recording, item: str) -> set[str]:
    layers = [site.layer for site in map(_parsed, recording.sites) if site is not None and site.layer is not None]
    n_layers = int(recording.info["model"].get("n_layers") or max(layers, default=-1) + 1)
    try:
        return {site.name for site in select(item, n_layers)} & set(recording.sites)
    except SiteError:
        return set()


def _parsed(name: str) -> Site | None:
    try:
        return Site.parse(name)
    except SiteError:
        return None


class SiteSource:
    """Selected rows of one site: [n, width] of `dtype`, bfloat16 carried as uint16."""

    def __init__(self, recording: Recording, site: str, selection: Selection, options: ExportOptions) -> None:
        self._rows = recording[site]
        self._at = np.flatnonzero(selection.mask(recording, self._rows.labels))
        self.name = site
        self.dtype = self._rows.source_dtype
        self.width = self._rows.width
        self.batch_rows = max(1, options.chunk_bytes // max(1, self.row_bytes))
        self.labels: np.ndarray = self._rows.labels[self._at]  # LABEL [n]
        self.row_ids: np.ndarray = self._rows.row_ids[self._at]  # int64 [n], ascending; the same token at every site

    def __len__(self) -> int:
        return len(self._at)

    @property
    def row_bytes(self) -> int:
        """Return the size of one row in bytes, without its label."""
        return self.width * itemsize(self.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows `start .. stop` as the numpy dtype that carries `dtype`."""
        return self._rows.native(self._at[start:stop])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over the range in batches of (first row, rows)."""
        stop = len(self) if stop is None else stop
        for begin in range(start, stop, self.batch_rows):
            yield begin, self.read(begin, min(stop, begin + self.batch_rows))


def converted(rows: np.ndarray, dtype: str, stored: str) -> np.ndarray:
    """Return rows of `dtype` converted to the stored dtype (see `ExportOptions.stored_dtype`)."""
    return to_float32(rows, dtype) if dtype == "bfloat16" and stored == "float32" else rows


class ExportFacts(TypedDict):
    """Content of `export.json`."""

    format: str
    version: int
    recording: str
    model: dict[str, Any]
    requests: list[str]
    sites: dict[str, dict[str, object]]
    texts: dict[str, str]


class ExportSource:
    """Source of one export: the selected rows of a recording."""

    def __init__(self, recording: Recording, selection: Selection, options: ExportOptions) -> None:
        self.recording = recording
        self.options = options
        names = choose_sites(recording, selection.sites)
        self.sites = [SiteSource(recording, name, selection, options) for name in names]
        if not any(len(site) for site in self.sites):
            raise RecordingError(f"{recording.path}: no rows are chosen: nothing to export")
        self.sites = [site for site in self.sites if len(site)]

    @property
    def n_bytes(self) -> int:
        """Return the size of all selected rows in bytes, decoded, without their labels."""
        return sum(len(site) * site.row_bytes for site in self.sites)

    def describe(self, stored: dict[str, str]) -> ExportFacts:
        """Return the content of `export.json`, as JSON values."""
        recording = self.recording
        used = np.unique(np.concatenate([site.labels["token_id"] for site in self.sites])).tolist()
        return {
            "format": "actscope-export",
            "version": 1,
            "recording": recording.info.get("id", ""),
            "model": recording.info["model"],
            "requests": recording.requests,
            "sites": {
                site.name: {"rows": len(site), "width": site.width, "dtype": site.dtype, "stored_as": stored[site.name]}
                for site in self.sites
            },
            "texts": {str(token): recording.texts[token] for token in used if token in recording.texts},
        }
