"""The probes of one table: which column of the ring is which probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
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
        return self._take([self.ids.index(w) for w in wanted if w in self.ids])

    def joined(self, other: Columns) -> Columns:
        """These columns, then those of the later `other` whose ids are not among them. A probe that was swapped
        between has its old place and is the later one."""
        both = self._with(other)
        at = {name: i for i, name in enumerate(both.ids)}
        return both._take(list(at.values()))

    def _with(self, other: Columns) -> Columns:
        return Columns(
            self.ids + other.ids,
            self.sites + other.sites,
            self.masks + other.masks,
            self.since + other.since,
            self.thresholds + other.thresholds,
        )

    def _take(self, at: list[int]) -> Columns:
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


def read_table_bytes(data: bytes) -> Table:
    """Decode a table as the engine publishes it; raises msgspec.DecodeError or ValueError on anything else."""
    return table_of(msgspec.json.decode(data))


def table_of(described: dict[str, Any]) -> Table:
    """The Table of `{"generation": g, "probes": [{"slot": …, "id": …}]}`."""
    probes = sorted(described.get("probes") or (), key=lambda p: int(p["slot"]))
    columns = Columns(
        tuple(str(p["id"]) for p in probes),
        tuple(str(p.get("site", "")) for p in probes),
        tuple(p.get("token_mask") == "special" for p in probes),
        tuple(int(p.get("since", 0)) for p in probes),
        tuple(p.get("threshold") for p in probes),
    )
    slots = np.array([int(p["slot"]) for p in probes], np.intp)
    return Table(int(described.get("generation", 0)), columns, slots, int(slots[-1]) + 1 if len(slots) else 0)
