"""Shuffled batches of a harvest's rows, for trainers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

from actscope.errors import SettingsError
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
    """Resume point: an epoch, and the number of its rows already delivered."""

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
    """The part of a harvest that batches are made from."""

    @property
    def plan(self) -> HarvestPlan: ...
    @property
    def manifest(self) -> HarvestManifest: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def n_rows(self) -> int: ...
    def shard(self, number: int) -> ShardRows: ...


class Batches:
    """An endless iterator of tensors [batch_size, d], which SAELens's SAETrainer takes as its data_provider.

    In an epoch every row comes exactly once. Shards come in a shuffled order, `window` of them at a time, and the rows of a
    window in an order that is uniform among all of its rows: with a window of all shards that is a true shuffle of the
    whole. Where the harvest was shuffled, every shard is a random sample of the texts already, and a few shards suffice.

    The order follows from (seed, epoch, window) alone, so `Batches(..., start=batches.place)` goes on with the very next row, on
    any machine, without reading what came before. A batch may run over the end of an epoch, or of a window: all have
    `batch_size` rows. Memory: the batch; pages of mapped shards come and go with the system's cache. `epochs` ends it,
    with a last batch that may be smaller.
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
        """Start at `start`.

        Args:
            harvest: Harvest to read.
            site: Name of one of its sites.
            batch_size: Rows of a batch, at least 1.
            seed: Seed of the order.
            window: Shards that are shuffled together, at least 1.
            dtype: Torch dtype of the batches; None keeps the stored one.
            device: Torch device of the batches; None is the CPU.
            epochs: Epoch number to stop at; None never stops.
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
        import torch

        ends = np.cumsum(sizes)
        of = np.searchsorted(ends, chosen, side="right")
        for i in np.unique(of):
            places = np.flatnonzero(of == i)
            wanted = chosen[places] - (ends[i] - sizes[i])
            source = self._shard(int(shards[i]), shards).rows(self._site)
            rows[torch.from_numpy(places)] = source.index_select(0, torch.from_numpy(wanted))

    def _shard(self, number: int, window: np.ndarray) -> ShardRows:
        if number not in self._open:
            self._open = {held: shard for held, shard in self._open.items() if held in window}
            self._open[number] = self._harvest.shard(number)
        return self._open[number]
