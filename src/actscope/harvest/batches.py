"""Shuffled batches of a harvest's rows, for trainers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

from actscope.errors import HarvestDamaged, SettingsError
from actscope.harvest.manifest import HarvestManifest
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.shards.reading import ShardRows
from actscope.permutation import Permutation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WINDOW = 8


@dataclass(frozen=True, slots=True)
class BatchCursor:
    """Resume point: an epoch, and the number of its rows that were delivered."""

    epoch: int = 0
    rows: int = 0


class BatchOptions(TypedDict, total=False):
    """Keyword arguments of `Batches`."""

    seed: int
    window: int
    dtype: torch.dtype | None
    device: torch.device | str | None
    epochs: int | None
    start: BatchCursor | dict[str, int] | None


class ShardSource(Protocol):
    """Interface of a harvest that `Batches` needs."""

    @property
    def plan(self) -> HarvestPlan:
        """Return the plan of the harvest."""

    @property
    def manifest(self) -> HarvestManifest:
        """Return the manifest of the harvest."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the sites, in the order of the plan."""

    @property
    def n_rows(self) -> int:
        """Return the number of rows of all shards."""

    def shard(self, number: int) -> ShardRows:
        """Return the rows of one shard."""


class Batches:
    """Iterator of shuffled batches [batch_size, d], usable as the data_provider of SAELens's SAETrainer.

    Each epoch yields every row exactly once. Shards come in a shuffled order, `window` of them at a time, and the rows of a
    window in a uniformly random order. A window of all shards is therefore a true shuffle of the harvest. In a shuffled harvest
    each shard is already a random sample of the texts, and a window of a few shards is enough.

    The order depends only on the harvest, the seed, the window and the epoch. `Batches(..., start=batches.place)` therefore
    resumes at exactly the next row, on any machine, without reading earlier rows. Batches cross the ends of windows and epochs:
    each has `batch_size` rows, except that the last one before `epochs` may be smaller. The iterator takes the memory of one
    batch; the pages of mapped shards belong to the page cache.

    Attributes:
        batch_size: Rows of a batch.
        place: Resume point after the batch last returned.
    """

    def __init__(
        self,
        harvest: ShardSource,
        site: str,
        batch_size: int,
        *,
        seed: int = 0,
        window: int = WINDOW,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        epochs: int | None = None,
        start: BatchCursor | dict[str, int] | None = None,
    ) -> None:
        """Create the iterator. No row is read yet.

        Args:
            harvest: Harvest to read.
            site: Name of one of its sites.
            batch_size: Rows of a batch, at least 1.
            seed: Seed of the order.
            window: Number of shards that are shuffled together, at least 1.
            dtype: Torch dtype of the batches; None keeps the stored one.
            device: Torch device of the batches; None is the CPU.
            epochs: Epoch at whose start the iterator ends: the number of epochs when it starts at 0. None never ends.
            start: A `place` or `state_dict()` to resume from.

        Raises:
            SettingsError: An argument is out of range, the site is unknown, or the harvest has no rows.
        """
        if batch_size < 1 or window < 1:
            raise SettingsError(f"batch_size {batch_size}, window {window}: expected at least 1")
        if site not in harvest.sites:
            raise SettingsError(f"site {site!r}: this harvest has {', '.join(harvest.sites)}")
        if not harvest.n_rows:
            raise SettingsError("this harvest has no rows")
        self.batch_size = batch_size
        self.place = BatchCursor(**start) if isinstance(start, dict) else start or BatchCursor()
        self._harvest, self._site, self._seed, self._window = harvest, site, seed, window
        self._dtype, self._device, self._epochs = dtype, device, epochs
        self._sizes = np.array([entry.rows for entry in harvest.manifest.shards], np.int64)
        if int(self._sizes.sum()) != harvest.n_rows:
            raise HarvestDamaged(f"its shards have {self._sizes.sum()} rows, and its manifest says {harvest.n_rows}")
        if not 0 <= self.place.rows < harvest.n_rows or self.place.epoch < 0:
            raise SettingsError(f"start {self.place}: expected an epoch from 0, and 0 to {harvest.n_rows - 1} rows")
        self._open: dict[int, ShardRows] = {}

    def state_dict(self) -> dict[str, int]:
        """Return the resume point as a dict of ints, for a checkpoint."""
        return {"epoch": self.place.epoch, "rows": self.place.rows}

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        import torch

        rows = torch.empty(self.batch_size, self._harvest.plan.d_model, dtype=getattr(torch, self._harvest.plan.dtype))
        have = 0
        while have < self.batch_size and self.place.epoch != self._epochs:
            have += self._take(rows[have:])
        if not have:
            raise StopIteration
        return rows[:have].to(device=self._device, dtype=self._dtype)

    def _take(self, rows: Tensor) -> int:
        """Fill the front of `rows` from the current window and advance. Return the number of rows filled."""
        epoch, done = self.place.epoch, self.place.rows
        number, shards, before = self._window_at(epoch, done)
        sizes = self._sizes[shards]
        total = int(sizes.sum())
        n = min(len(rows), total - (done - before))
        order = Permutation(total, self._seed, epoch, "rows", number)
        self._gather(order.part(done - before, done - before + n), shards, sizes, rows[:n])
        done += n
        self.place = BatchCursor(epoch + 1, 0) if done == self._harvest.n_rows else BatchCursor(epoch, done)
        return n

    def _window_at(self, epoch: int, done: int) -> tuple[int, np.ndarray, int]:
        """Return the window with row `done` of an epoch: its number, its shards, and the number of rows before it."""
        order = Permutation(len(self._sizes), self._seed, epoch, "shards").part(0, len(self._sizes))
        ends = np.cumsum(self._sizes[order])
        number = int(np.searchsorted(ends, done, side="right")) // self._window
        first = number * self._window
        return number, order[first : first + self._window], int(ends[first - 1]) if first else 0

    def _gather(self, chosen: np.ndarray, shards: np.ndarray, sizes: np.ndarray, rows: Tensor) -> None:
        """Copy the rows with the indices `chosen` in a window of `shards` to `rows`."""
        import torch

        ends = np.cumsum(sizes)
        of = np.searchsorted(ends, chosen, side="right")
        for i in np.unique(of):
            places = np.flatnonzero(of == i)
            wanted = chosen[places] - (ends[i] - sizes[i])
            source = self._shard(int(shards[i]), shards).rows(self._site)
            rows[torch.from_numpy(places)] = source.index_select(0, torch.from_numpy(wanted))

    def _shard(self, number: int, window: np.ndarray) -> ShardRows:
        """Return a shard, opening it if necessary. Shards outside the window are dropped."""
        if number not in self._open:
            self._open = {held: shard for held, shard in self._open.items() if held in window}
            self._open[number] = self._harvest.shard(number)
        return self._open[number]
