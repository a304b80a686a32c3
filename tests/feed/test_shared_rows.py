"""Batches that are views of a feed's memory: what their user writes is his own, and what the feed writes is always seen."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.client import private_views
from actscope.feed.client.shared_rows import SharedRows
from actscope.feed.messages import Stretch

LAYOUT = Layout(n_windows=2, window_rows=64, n_sites=2, width=100, dtype="float32")
SITE = 1


@dataclass(frozen=True)
class Memory:
    """A feed's memory: as the feed writes it, and as a consumer reads it."""

    feed: FeedMemory
    rows: SharedRows

    def fill(self, value: float) -> None:
        """Fill the first window."""
        self.feed.plane(0, SITE)[:] = value


@pytest.fixture(params=["pagemap", "no /proc"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Memory of known rows; with a kernel that says which pages were written, and without."""
    if request.param == "no /proc":
        monkeypatch.setattr(private_views, "_PAGEMAP", "/nonexistent/pagemap")
    feed = FeedMemory.create(LAYOUT, huge_pages=False)
    rows = SharedRows(os.dup(feed.fd), LAYOUT, seed=1)
    yield Memory(feed, rows)
    rows.close()
    feed.close()


def granted(start: int, n: int) -> list[Stretch]:
    """A grant of rows of the first window."""
    return [Stretch(window=0, generation=0, epoch=0, number=0, turn=0, window_rows=64, start=start, n=n)]


def values_in(rows: torch.Tensor) -> list[float]:
    """The different values of these rows, ascending."""
    return sorted(set(rows.flatten().tolist()))


def test_a_write_to_a_view_is_seen_by_nobody_else_and_gone_with_the_next_grant(memory: Memory) -> None:
    """The feed, another reader and the next view have the rows as they were written by the feed."""
    memory.fill(1)
    with memory.rows.view(granted(3, 20), SITE) as view:
        view.mul_(5)
        assert values_in(view) == [5]
    with memory.rows.view(granted(3, 20), SITE) as view:
        assert values_in(view) == [1]
    assert np.unique(memory.feed.plane(0, SITE)).tolist() == [1]


def test_rows_that_the_feed_writes_later_are_seen_after_a_write_of_the_consumers(memory: Memory) -> None:
    """A page that was written, also without torch's knowledge, also in a batch kept too long, shows its window's next fill."""
    memory.fill(1)
    with memory.rows.view(granted(0, 64), SITE) as kept:
        kept.numpy()[:] = 7  # torch's counter does not see this
    kept.add_(1)  # and this comes when the batch is no longer valid
    memory.fill(2)
    with memory.rows.view(granted(0, 64), SITE) as view:
        assert values_in(view) == [2]
        memory.fill(
            3
        )  # the lease has expired: the view has the new rows, as every reader, and is told to be torn elsewhere
        assert values_in(view) == [3]


def test_two_views_that_share_a_page_keep_what_was_written_to_each(memory: Memory) -> None:
    """A row has 400 bytes, so that rows 3 and 4 lie in one page: the second grant must not undo the first one's write."""
    memory.fill(1)
    with memory.rows.view(granted(0, 4), SITE) as first:
        first.add_(1)
        with memory.rows.view(granted(4, 40), SITE) as second:
            second.add_(2)
            assert (values_in(first), values_in(second)) == ([2], [3])
        assert values_in(first) == [2]
    with memory.rows.view(granted(0, 64), SITE) as view:
        assert values_in(view) == [1]


def test_a_view_may_be_written_in_inference_mode(memory: Memory) -> None:
    """Inference tensors have no count of their changes."""
    memory.fill(1)
    with torch.inference_mode(), memory.rows.view(granted(0, 8), SITE) as view:
        view.zero_()
    with memory.rows.view(granted(0, 8), SITE) as view:
        assert values_in(view) == [1]


def test_a_kept_view_outlives_its_client(memory: Memory) -> None:
    """A batch that is still referenced after `close` can be read and written."""
    memory.fill(1)
    with memory.rows.view(granted(0, 8), SITE) as view:
        pass
    memory.rows.close()
    view.add_(1)
    assert values_in(view) == [2]


def test_where_the_memory_cannot_be_mapped_once_more_batches_are_copies(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the address space costs a copy, not the batch."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    memory.fill(1)
    monkeypatch.setattr("actscope.feed.client.shared_rows.PrivateViews", refuse)
    with memory.rows.view(granted(0, 8), SITE) as view:
        view.add_(1)
    assert np.unique(memory.feed.plane(0, SITE)).tolist() == [1]


def test_a_trainer_that_writes_to_a_zero_copy_batch_does_not_die() -> None:
    """It was a segmentation fault (tried in a process of its own): a feed's real client, whose batches are scaled in place."""
    trainer = textwrap.dedent(
        """
        from support.feed.feeding import feeding
        with feeding(sites="1,2", group_seconds=0.2) as feed, feed.client(group="writes") as client:
            for number, batch in zip(range(60), client.iter(100, sites="2", zero_copy=True)):
                assert batch.isfinite().all() and batch.norm(dim=-1).min() > 1, number
                batch.mul_(0)
                batch.numpy()[:] = float("nan")
        print("alive")
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", trainer], capture_output=True, text=True, env=environment, timeout=240)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
