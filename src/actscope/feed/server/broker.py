"""In-process broker: grants rows to consumers and wakes waiting ones. Runs on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from actscope.errors import FeedError, FeedNotReady, RequestRefused
from actscope.feed.buffer.allocator import Grant, WindowAllocator
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.buffer.position import Position, StreamMark
from actscope.feed.messages import Filled, Loaded
from actscope.feed.server.normalisation import SiteNormalisation
from actscope.feed.settings import FeedSettings

_EXPIRE_S = 0.25


class Broker:
    """Broker between the generator and all consumers. `facts` and `memory` are None until the generator has loaded its model."""

    def __init__(
        self, settings: FeedSettings, start: Position, check: Callable[[Loaded], None] = lambda facts: None
    ) -> None:
        self.settings = settings
        self.check = check
        """Raises FeedError if the model or the dataset is not the expected one."""
        self.start = start
        self.buffer = WindowAllocator(
            windows=settings.windows,
            window_rows=settings.window_rows,
            serves=settings.serves,
            start=start,
            epochs=settings.epochs,
            max_groups=settings.max_groups,
            group_seconds=settings.group_seconds,
        )
        self.facts: Loaded | None = None
        self.memory: FeedMemory | None = None
        self.statistics: dict[str, SiteNormalisation] = {}
        self.failure = ""
        self._changed = asyncio.Event()
        self.room = asyncio.Event()
        """Set when a window has become free."""

    def open(self, facts: Loaded, memory: FeedMemory) -> None:
        """Set the generator's facts and the buffer's memory, and reset the statistics."""
        self.facts, self.memory = facts, memory
        self.statistics = {site: SiteNormalisation(facts.width) for site in facts.sites}

    def filled(self, message: Filled) -> None:
        """Mark a window as ready, add its sums to the statistics, and wake waiting consumers."""
        self.buffer.filled(
            message.window,
            message.n_rows,
            StreamMark(*message.begun),
            StreamMark(*message.after),
            epoch_over=message.epoch_over,
        )
        for statistics, sums in zip(self.statistics.values(), message.sums, strict=True):
            statistics.add(message.n_rows, sums)
        self.notify()

    def fail(self, why: str) -> None:
        """Record a permanent failure and wake waiting consumers. Ready rows can still be claimed."""
        self.failure = why
        self.notify()

    def notify(self) -> None:
        """Wake all waiting consumers and the supervisor, so that they check the state again."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.room.set()

    async def loaded(self, wait: float) -> Loaded | None:
        """Wait at most `wait` seconds for the generator's facts. Return None on timeout or failure."""
        until = time.monotonic() + self._patience(wait)
        while self.facts is None and not self.failure and (left := until - time.monotonic()) > 0:
            await _within(self._changed, left)
        return self.facts

    def claim(self, group: str, n: int, owner: object, *, lease: float = float("inf")) -> Grant:
        """Grant the next `n` rows of a group without waiting.

        Args:
            group: Name of the group; a new one is created.
            n: Number of rows, 1 to `settings.most_rows`.
            owner: Consumer that will hold the rows.
            lease: Duration of the lease, in seconds.

        Returns:
            The grant. It may be shorter, as `WindowAllocator.claim` says.

        Raises:
            FeedNotReady: Fewer than `n` rows are ready.
            FeedEnded: All epochs have been served to this group.
            FeedError: Fewer than `n` rows are ready, and the feed has failed.
            RequestRefused: `n` is out of range, or there are too many groups.
        """
        if not 1 <= n <= self.settings.most_rows:
            raise RequestRefused(
                f"num_samples {n}: expected 1 to {self.settings.most_rows}",
                param="num_samples",
                code="too_many_samples",
            )
        try:
            return self.buffer.claim(group, n, owner, time.monotonic(), lease)
        except FeedNotReady as error:
            if self.failure:
                raise FeedError(f"the feed has failed: {self.failure}") from error
            raise
        finally:
            self._look_for_room()

    async def take(self, group: str, n: int, owner: object, *, wait: float = 0.0, lease: float = float("inf")) -> Grant:
        """Wait at most `wait` seconds for rows, and grant them as `claim` does. Raises FeedNotReady on timeout."""
        until = time.monotonic() + self._patience(wait)
        while True:
            changed = self._changed
            try:
                return self.claim(group, n, owner, lease=lease)
            except FeedNotReady:
                left = until - time.monotonic()
                if left <= 0:
                    raise
                await _within(changed, left)

    def release(self, grant: int, owner: object, *, delivered: bool) -> bool:
        """Release a grant, counted as delivered or abandoned. Return False unless `owner` holds it."""
        released = self.buffer.release(grant, owner, delivered=delivered)
        self._look_for_room()
        return released

    def release_owner(self, owner: object) -> int:
        """Release all grants of a consumer as abandoned. Return the number of rows."""
        rows = self.buffer.release_owner(owner)
        self._look_for_room()
        return rows

    def refresh(self) -> int:
        """Drop all ready rows. Return the number of rows dropped."""
        dropped = self.buffer.refresh()
        self.notify()
        return dropped

    async def keep_time(self) -> None:
        """Expire leases periodically. Never returns."""
        while True:
            await asyncio.sleep(_EXPIRE_S)
            self.buffer.expire(time.monotonic())
            self._look_for_room()

    def _look_for_room(self) -> None:
        """Wake the supervisor if a window is free."""
        if self.buffer.has_room:
            self.room.set()

    def _patience(self, wait: float) -> float:
        """Clip a requested wait to `settings.wait_seconds`. NaN counts as 0."""
        return min(wait, self.settings.wait_seconds) if wait > 0 else 0.0

    def describe(self) -> dict[str, Any]:
        """Return the model, dataset, sites, width and dtype, for `GET /`."""
        facts = self.facts
        if facts is None:
            return {"model": self.settings.model, "dataset": self.settings.dataset, "sites": None, "width": None}
        return {
            "model": facts.model,
            "revision": facts.revision,
            "engine": facts.engine,
            "dataset": facts.dataset,
            "dataset_fingerprint": facts.fingerprint,
            "texts": facts.n_texts,
            "sites": facts.sites,
            "width": facts.width,
            "dtype": facts.dtype,
            "deterministic": facts.deterministic,
        }


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):  # `wait_for` of Python 3.11 can lose a cancellation
            await event.wait()
    except TimeoutError:
        return
