"""The probes of one table: which column of the ring is which probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Columns:
    """Probes in the order in which their scores are kept. Equal when every score means the same."""

    ids: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    masks: tuple[bool, ...] = ()
    """True where the probe has no meaning on special tokens."""
    since: tuple[int, ...] = ()
    """The table's generation at which each probe was put: another one under the same id is another probe."""
    thresholds: tuple[float | None, ...] = field(default=(), compare=False)

    @property
    def keys(self) -> tuple[tuple[str, int], ...]:
        """What tells each probe from every other, also from an earlier one of its id."""
        return tuple(zip(self.ids, self.since, strict=True))

    def header(self) -> list[dict[str, str | int]]:
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
        return both.take(list(at.values()))

    def beside(self, other: Columns) -> Columns:
        """These columns, then all of `other`."""
        return Columns(
            self.ids + other.ids,
            self.sites + other.sites,
            self.masks + other.masks,
            self.since + other.since,
            self.thresholds + other.thresholds,
        )

    def take(self, at: list[int]) -> Columns:
        """The columns at these places, in this order."""
        return Columns(
            tuple(self.ids[i] for i in at),
            tuple(self.sites[i] for i in at),
            tuple(self.masks[i] for i in at),
            tuple(self.since[i] for i in at),
            tuple(self.thresholds[i] for i in at),
        )


NO_COLUMNS = Columns()


@dataclass(frozen=True)
class Table:
    """One generation of the engine's probe table."""

    generation: int
    columns: Columns
    slots: np.ndarray
    """Column of the ring for each probe, ascending."""
    width: int
    """The last of those columns, plus one."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """`rows[n, width]` of the ring as `[n, number of probes]`; a probe beyond the ring's width has NaN."""
        width = self.width
        if rows.shape[1] < width:
            rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=np.nan)
        return rows[:, :width] if width == len(self.columns.ids) else rows[:, self.slots]


EMPTY_TABLE = Table(0, NO_COLUMNS, np.zeros(0, np.intp), 0)


def table_of(described: dict[str, Any], part: int = 0, parts: int = 1) -> Table:
    """The Table of `{"generation": g, "probes": [{"slot": …, "id": …}]}`, of one part of the engine (see `numbered`)."""
    probes = sorted(described.get("probes") or (), key=lambda p: int(p["slot"]))
    columns = Columns(
        tuple(str(p["id"]) for p in probes),
        tuple(str(p.get("site", "")) for p in probes),
        tuple(p.get("token_mask") == "special" for p in probes),
        tuple(numbered(int(p.get("since", 0)), part, parts) for p in probes),
        tuple(p.get("threshold") for p in probes),
    )
    slots = np.array([int(p["slot"]) for p in probes], np.intp)
    generation = numbered(int(described.get("generation", 0)), part, parts)
    return Table(generation, columns, slots, int(slots[-1]) + 1 if len(slots) else 0)


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
    return every.take(at), np.array(at, np.intp)


def join_tables(tables: Sequence[Table]) -> Table:
    """The probe tables of all parts as one, for asking which probes there are; it does not fit any one ring."""
    columns, at = join_columns([table.columns for table in tables])
    return Table(max(table.generation for table in tables), columns, at, len(at))


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
