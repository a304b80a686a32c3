"""Probe tables: which column of the ring holds which probe, and which ones hold the features of an SAE."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, TypedDict

import msgspec
import numpy as np

from actscope.errors import ActscopeError, UpstreamError
from actscope.ring.discovery import EngineCard, read_table
from actscope.runtime.decoding import as_own_error, decode_json


class SaeFacts(msgspec.Struct, frozen=True):
    """SAE that the engine evaluates at `site`: the `k` strongest of its `n_features` features for each row."""

    site: str
    name: str
    k: int
    n_features: int


class HeaderCell(TypedDict):
    """One column of the score rows, as clients see it."""

    id: str
    site: str
    since: int


@dataclass(frozen=True)
class Columns:
    """Meaning of a row's cells: one for each probe, then those of the SAE's features. Equal if every cell means the same.

    The features of an SAE are 2 k cells: number and activation of the strongest feature, of the next one, and so on. The number
    is -1 if there are no more active features, and NaN if none were computed.
    """

    ids: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    masks: tuple[bool, ...] = ()
    """Whether each probe is masked on special tokens."""
    since: tuple[int, ...] = ()
    """Generation of the table in which each probe was put. A probe put again under the same id is another probe."""
    thresholds: tuple[float | None, ...] = field(default=(), compare=False)
    sae: SaeFacts | None = None

    @property
    def width(self) -> int:
        """Return the number of cells of a row."""
        return len(self.ids) + (2 * self.sae.k if self.sae else 0)

    @cached_property
    def probes(self) -> Columns:
        """Return the columns without the features: the same object each time, and `self` without an SAE."""
        return self if self.sae is None else replace(self, sae=None)

    @cached_property
    def features(self) -> Columns:
        """Return the columns of the features only: the same object each time."""
        return Columns(sae=self.sae)

    @property
    def keys(self) -> tuple[tuple[str, int], ...]:
        """Return the identity of each probe: its id and `since`."""
        return tuple(zip(self.ids, self.since, strict=True))

    def header(self) -> list[HeaderCell]:
        """Return the description of the probes for clients."""
        named = zip(self.ids, self.sites, self.since, strict=True)
        return [{"id": name, "site": site, "since": since} for name, site, since in named]

    def pick(self, wanted: Iterable[str]) -> Columns:
        """Return the columns of the `wanted` probes that exist here, in that order."""
        return self.take([self.ids.index(w) for w in wanted if w in self.ids])

    def joined(self, other: Columns) -> Columns:
        """Return these columns, then those of the later `other` with new ids.

        A probe that was replaced in between keeps its place and is the later version.
        """
        both = self.beside(other)
        at = {name: i for i, name in enumerate(both.ids)}
        return replace(both.take(list(at.values())), sae=both.sae)

    def beside(self, other: Columns) -> Columns:
        """Return these columns, then all of `other`. The SAE is the later one."""
        return Columns(
            self.ids + other.ids,
            self.sites + other.sites,
            self.masks + other.masks,
            self.since + other.since,
            self.thresholds + other.thresholds,
            other.sae or self.sae,
        )

    def take(self, at: list[int]) -> Columns:
        """Return the probes at these indices, in this order, without features."""
        return Columns(
            tuple(self.ids[i] for i in at),
            tuple(self.sites[i] for i in at),
            tuple(self.masks[i] for i in at),
            tuple(self.since[i] for i in at),
            tuple(self.thresholds[i] for i in at),
        )


NO_COLUMNS = Columns()


@dataclass(frozen=True)
class ProbeTable:
    """One generation of the probe table of an engine or of one of its parts."""

    generation: int
    columns: Columns
    slots: np.ndarray
    """Column of the ring of each cell of `columns`, ascending."""
    width: int
    """Last of those columns, plus one."""
    digests: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Hash of each probe's metadata and vector, by its id; empty if the engine states none."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [n, width of the ring] as [n, columns.width]. Cells beyond the ring's width are NaN. May be a view."""
        width = self.width
        if rows.shape[1] < width:
            rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=np.nan)
        return rows[:, :width] if width == len(self.slots) else rows[:, self.slots]


EMPTY_TABLE = ProbeTable(0, NO_COLUMNS, np.zeros(0, np.intp), 0)


#: Most columns of a ring's rows.
_MOST_COLUMNS = 1 << 20


class Versions:
    """Numbers of the probes' versions (`since`) in a server with several engines, each of which counts generations by itself.

    The same probe has one number in all engines, and two probes with one id have two, in whatever order engines learn of them.

    Attributes:
        are_shared: Whether there are several engines. Until then, numbers are the engine's own.
    """

    def __init__(self) -> None:
        self.are_shared = False
        self._numbers: dict[tuple[str, str], int] = {}
        self._taken: set[tuple[str, int]] = set()

    def number(self, name: str, digest: str, since: int) -> int:
        """Return the number of the version of probe `name` with this digest, which an engine has put at `since`."""
        key = (name, digest)
        if not digest or (self.are_shared and key in self._numbers):
            return self._numbers.get(key, since)
        while self.are_shared and (name, since) in self._taken:
            since += 1
        if len(self._numbers) >= _MOST_VERSIONS:
            self._numbers.clear()
        self._taken.add((name, since))
        self._numbers[key] = since
        return since


def table_of(described: dict[str, Any], part: int = 0, parts: int = 1, versions: Versions | None = None) -> ProbeTable:
    """Return the table of `{"generation": g, "probes": [{"slot": …, "id": …}], "features"?: {"first": …, "k": …}}`.

    It belongs to part `part` of `parts` (see `numbered`). `versions` numbers its probes. Features begin in the ring
    at column `first`, after all probes.
    """
    probes = sorted(described.get("probes") or (), key=lambda p: int(p["slot"]))
    features = described.get("features")
    sae = None if features is None else msgspec.convert(features, SaeFacts)
    digests = {str(name): str(digest) for name, digest in (described.get("digests") or {}).items()}
    number = Versions().number if versions is None else versions.number
    columns = Columns(
        tuple(str(p["id"]) for p in probes),
        tuple(str(p.get("site", "")) for p in probes),
        tuple(p.get("token_mask") == "special" for p in probes),
        tuple(
            number(str(p["id"]), digests.get(str(p["id"]), ""), numbered(int(p.get("since", 0)), part, parts))
            for p in probes
        ),
        tuple(p.get("threshold") for p in probes),
        sae,
    )
    first = 0 if features is None else int(features["first"])
    if not 0 <= first + columns.features.width <= _MOST_COLUMNS:
        raise UpstreamError(f"a probe table with {columns.features.width} columns of features, from {first} on")
    slots = np.array([*(int(p["slot"]) for p in probes), *range(first, first + columns.features.width)], np.intp)
    generation = numbered(int(described.get("generation", 0)), part, parts)
    return ProbeTable(generation, columns, slots, int(slots[-1]) + 1 if len(slots) else 0, digests)


def numbered(generation: int, part: int, parts: int) -> int:
    """Return a part's generation as one of the whole engine: unique among all parts, and increasing for each part."""
    return generation * parts + part


def join_columns(parts: Sequence[Columns]) -> tuple[Columns, np.ndarray]:
    """Return the columns of all parts of an engine as one row, and the index of each cell in the concatenated rows of the parts.

    A probe that moved from one part to another belongs to the part in which it was put last.
    """
    every = reduce(Columns.beside, parts, NO_COLUMNS)
    newest: dict[str, int] = {}
    for i, name in enumerate(every.ids):
        if name not in newest or every.since[i] > every.since[newest[name]]:
            newest[name] = i
    at = sorted(newest.values())
    probe_cells, feature_cells = _cells(parts)
    cells = [*(probe_cells[i] for i in at), *feature_cells]
    return replace(every.take(at), sae=every.sae), np.array(cells, np.intp)


def _cells(parts: Sequence[Columns]) -> tuple[list[int], list[int]]:
    """Return the indices of all probes, and of the last part's features, in the concatenated cells of all parts."""
    probes, features, start = list[int](), list[int](), 0
    for part in parts:
        end = start + len(part.ids)
        probes += range(start, end)
        start += part.width
        features = list(range(end, start)) or features
    return probes, features


def join_tables(tables: Sequence[ProbeTable]) -> ProbeTable:
    """Return the probe tables of all parts as one, which describes the probes. It does not fit the rows of any single ring."""
    columns, at = join_columns([table.columns for table in tables])
    digests = {name: digest for table in tables for name, digest in table.digests.items()}
    return ProbeTable(max(table.generation for table in tables), columns, at, len(at), digests)


def join_described(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the joined table of tables in the form that engines answer: `{"generation", "probes"}`, in the parts' order."""
    n, probes = len(tables), dict[str, dict[str, Any]]()
    for part, table in enumerate(tables):
        for probe in table.get("probes") or ():
            one = probe | {"since": numbered(int(probe.get("since", 0)), part, n)}
            if probe["id"] not in probes or one["since"] > probes[probe["id"]]["since"]:
                probes[probe["id"]] = one
    generation = max(numbered(int(table.get("generation", 0)), part, n) for part, table in enumerate(tables))
    return {"generation": generation, "probes": list(probes.values())}


_log = logging.getLogger(__name__)

_KEPT = 64
#: Number of versions of probes from which they are numbered anew.
_MOST_VERSIONS = 65_536


class Tables:
    """Probe tables of one part. Each generation is read once, when its first row arrives; the last 64 read are cached.

    Attributes:
        latest: Table in force, as far as it is known.
        unreadable: Number of tables that could not be read.
    """

    def __init__(self, card: EngineCard, versions: Versions | None = None) -> None:
        self._card = card
        self._versions = versions
        self._known: dict[int, ProbeTable | None] = {}
        self.latest = EMPTY_TABLE
        self.unreadable = 0

    def of(self, generation: int) -> ProbeTable | None:
        """Return the table of a generation; None if it cannot be read."""
        if generation not in self._known:
            self._known[generation] = self._read(generation)
            while len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        table = self._known[generation]
        if table is not None and table is not self.latest and table.generation >= self.latest.generation:
            self.latest = table
        return table

    def learn(self, described: bytes) -> None:
        """Set the table in force from the engine's answer to `GET /v1/actscope/probes`."""
        with as_own_error(UpstreamError, "the engine's answer is no probe table"):
            found = decode_json(described, dict, UpstreamError, "the engine's answer is no probe table")
            self.latest = table_of(found, self._card.part, self._card.parts, self._versions)

    def _read(self, generation: int) -> ProbeTable | None:
        card = self._card
        try:
            with as_own_error(UpstreamError, "it cannot be read"):
                found = decode_json(read_table(card.id, generation), dict, UpstreamError, "it is not JSON")
                return table_of(found, card.part, card.parts, self._versions)
        except ActscopeError as error:
            self.unreadable += 1
            if self.unreadable == 1:
                _log.warning(
                    "probe table %d of engine %s: %s; its scores are not delivered", generation, card.id, error
                )
            return None
