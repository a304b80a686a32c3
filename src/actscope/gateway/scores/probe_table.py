"""The probes of one table: which column of the ring is which probe, and where an SAE's features stand."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, TypedDict

import msgspec
import numpy as np

from actscope.ring.discovery import EngineCard, read_table


class SaeFacts(msgspec.Struct, frozen=True):
    """An SAE that the engine computes at `site`: of each row the `k` strongest of its `n_features` features."""

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
    """Probes in the order in which their scores are kept, and behind them the features. Equal when every cell means the same.

    The features of an SAE are 2 k cells: number and activation of the strongest one, of the next one, …; the number is
    -1 where there are no more, NaN where none were computed.
    """

    ids: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    masks: tuple[bool, ...] = ()
    """True where the probe has no meaning on special tokens."""
    since: tuple[int, ...] = ()
    """The table's generation at which each probe was put: another one under the same id is another probe."""
    thresholds: tuple[float | None, ...] = field(default=(), compare=False)
    sae: SaeFacts | None = None

    @property
    def width(self) -> int:
        """How many cells a row has."""
        return len(self.ids) + (2 * self.sae.k if self.sae else 0)

    @cached_property
    def probes(self) -> Columns:
        """The probes alone; the same object each time, this very one where there is no SAE."""
        return self if self.sae is None else replace(self, sae=None)

    @cached_property
    def features(self) -> Columns:
        """The features alone; the same object each time."""
        return Columns(sae=self.sae)

    @property
    def keys(self) -> tuple[tuple[str, int], ...]:
        """What tells each probe from every other, also from an earlier one of its id."""
        return tuple(zip(self.ids, self.since, strict=True))

    def header(self) -> list[HeaderCell]:
        """What clients are told of the columns."""
        named = zip(self.ids, self.sites, self.since, strict=True)
        return [{"id": name, "site": site, "since": since} for name, site, since in named]

    def pick(self, wanted: Iterable[str]) -> Columns:
        """Only the `wanted` probes that are here, in the order asked for."""
        return self.take([self.ids.index(w) for w in wanted if w in self.ids])

    def joined(self, other: Columns) -> Columns:
        """These columns, then those of the later `other` whose ids are not among them. A probe that was swapped
        between has its old place and is the later one."""
        both = self.beside(other)
        at = {name: i for i, name in enumerate(both.ids)}
        return replace(both.take(list(at.values())), sae=both.sae)

    def beside(self, other: Columns) -> Columns:
        """These columns, then all of `other`; one SAE, the later one."""
        return Columns(
            self.ids + other.ids,
            self.sites + other.sites,
            self.masks + other.masks,
            self.since + other.since,
            self.thresholds + other.thresholds,
            other.sae or self.sae,
        )

    def take(self, at: list[int]) -> Columns:
        """The probes at these places, in this order, without features."""
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
    """One generation of the engine's probe table."""

    generation: int
    columns: Columns
    slots: np.ndarray
    """Column of the ring for each cell of `columns`, ascending."""
    width: int
    """The last of those columns, plus one."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """`rows[n, width]` of the ring as `[n, columns.width]`; a cell beyond the ring's width is NaN."""
        width = self.width
        if rows.shape[1] < width:
            rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=np.nan)
        return rows[:, :width] if width == len(self.slots) else rows[:, self.slots]


EMPTY_TABLE = ProbeTable(0, NO_COLUMNS, np.zeros(0, np.intp), 0)


def table_of(described: dict[str, Any], part: int = 0, parts: int = 1) -> ProbeTable:
    """The Table of `{"generation": g, "probes": [{"slot": …, "id": …}], "features"?: {"first": …, "k": …}}`.

    It is of one part of the engine (see `numbered`). Features stand in the ring from column `first` on, behind all probes.
    """
    probes = sorted(described.get("probes") or (), key=lambda p: int(p["slot"]))
    features = described.get("features")
    sae = None if features is None else msgspec.convert(features, SaeFacts)
    columns = Columns(
        tuple(str(p["id"]) for p in probes),
        tuple(str(p.get("site", "")) for p in probes),
        tuple(p.get("token_mask") == "special" for p in probes),
        tuple(numbered(int(p.get("since", 0)), part, parts) for p in probes),
        tuple(p.get("threshold") for p in probes),
        sae,
    )
    first = 0 if features is None else int(features["first"])
    slots = np.array([*(int(p["slot"]) for p in probes), *range(first, first + columns.features.width)], np.intp)
    generation = numbered(int(described.get("generation", 0)), part, parts)
    return ProbeTable(generation, columns, slots, int(slots[-1]) + 1 if len(slots) else 0)


def numbered(generation: int, part: int, parts: int) -> int:
    """A part's generation as the whole engine's: no two parts have the same one, and a part's own only grow."""
    return generation * parts + part


def join_columns(parts: Sequence[Columns]) -> tuple[Columns, np.ndarray]:
    """The columns of all parts of an engine as one row, and which of the concatenated columns these are.

    A probe that has moved from one part to another is where it was put last.
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
    """Where all probes, and the features, stand among the concatenated cells of all parts."""
    probes, features, start = list[int](), list[int](), 0
    for part in parts:
        end = start + len(part.ids)
        probes += range(start, end)
        start += part.width
        features = list(range(end, start)) or features
    return probes, features


def join_tables(tables: Sequence[ProbeTable]) -> ProbeTable:
    """The probe tables of all parts as one, for asking which probes there are; it does not fit any one ring."""
    columns, at = join_columns([table.columns for table in tables])
    return ProbeTable(max(table.generation for table in tables), columns, at, len(at))


def join_described(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same for tables as engines answer them: `{"generation", "probes"}`, in the parts' order."""
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


class Tables:
    """Each is read once, when its first row comes. `unreadable` counts those that could not be."""

    def __init__(self, card: EngineCard) -> None:
        self._card = card
        self._known: dict[int, ProbeTable | None] = {}
        self.latest = EMPTY_TABLE
        self.unreadable = 0

    def of(self, generation: int) -> ProbeTable | None:
        """The table of a generation, None when it cannot be read."""
        if generation not in self._known:
            self._known[generation] = self._read(generation)
            while len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        table = self._known[generation]
        if table is not None and table is not self.latest and table.generation >= self.latest.generation:
            self.latest = table
        return table

    def learn(self, described: bytes) -> None:
        """The table in force, as the engine answers `GET /v1/actscope/probes`."""
        self.latest = table_of(msgspec.json.decode(described), self._card.part, self._card.parts)

    def _read(self, generation: int) -> ProbeTable | None:
        card = self._card
        try:
            return table_of(msgspec.json.decode(read_table(card.id, generation)), card.part, card.parts)
        except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            self.unreadable += 1
            if self.unreadable == 1:
                _log.warning(
                    "probe table %d of engine %s: %s; its scores are not delivered", generation, card.id, error
                )
            return None
