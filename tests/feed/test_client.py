"""The clients: synchronous, asynchronous, and as a torch dataset."""

from __future__ import annotations

import asyncio
import mmap
import threading
from typing import Any

import pytest
import torch
from support.feed.feeding import TOKEN, Feeding, feeding
from support.typed import keywords_of, written_hints
from torch.utils.data import DataLoader

from actscope.errors import RequestRefused, SettingsError, SiteError, UpstreamError
from actscope.feed import AsyncFeedClient, FeedClient, FeedDataset
from actscope.feed.buffer.position import Position
from actscope.feed.client.options import ClientOptions, IterOptions, Transport
from actscope.feed.client.prefetch import prefetch_iterator


def test_the_client_finds_the_memory_by_itself_and_falls_back_to_http(
    feed: Feeding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same machine rows come out of memory without a word; from another boot they come over HTTP."""
    with feed.client(group="auto") as client:
        client.take(1)
        assert client._shm is not None
    monkeypatch.setattr("actscope.feed.client.client.boot_id", lambda: "another")
    with feed.client(group="auto") as client:
        client.take(1)
        assert client._shm is None
    with feed.client(group="auto", transport="near") as client, pytest.raises(UpstreamError, match="another machine"):
        client.take(1)


@pytest.mark.parametrize("transport", ["near", "http"])
def test_rows_go_into_the_tensor_that_is_given(feed: Feeding, transport: str) -> None:
    """`out` is used, whichever way rows come; one that does not fit is refused before anything is taken."""
    out = torch.full((50, 256), torch.nan)
    with feed.client(group=f"out-{transport}", transport=transport) as client:
        found = client.get_activations_tensor(50, sites="1", out=out)
        assert found.data_ptr() == out.data_ptr() and torch.isfinite(out).all()
        for wrong in (torch.empty(50, 255), torch.empty(49, 256), torch.empty(50, 256, dtype=torch.float16)):
            with pytest.raises(SettingsError, match=r"out: expected a contiguous CPU tensor torch\.float32"):
                client.take(50, sites="1", out=wrong)


@pytest.mark.parametrize("transport", ["near", "http"])
def test_refusals_are_errors_that_say_what_to_do(feed: Feeding, transport: str) -> None:
    """Too many rows, and sites that are not there, are refused with what is possible."""
    with feed.client(group="refused", transport=transport) as client:
        with pytest.raises(RequestRefused, match="expected 1 to 2000"):
            client.take(5000)
        with pytest.raises(SiteError, match=r"this feed has layers\.1\.resid_post"):
            client.take(1, sites="9")


@pytest.mark.parametrize("transport", ["near", "http"])
def test_one_group_too_many_is_refused_at_once(transport: Transport) -> None:
    """It does not wait for the end of another group, which may never come."""
    with feeding(max_groups=1, group_seconds=3600.0) as feed, feed.client(group="first") as first:
        first.take(1)
        with (
            feed.client(group="second", transport=transport, timeout=60.0) as second,
            pytest.raises(RequestRefused, match=r"at most 1 groups \(setting: max_groups\), found already: first"),
        ):
            second.take(1)


def test_a_wrong_token_and_an_absent_feed_are_different_errors(feed: Feeding) -> None:
    """The messages differ: one asks for the token, the other to start the feed."""
    with FeedClient(feed.url, "wrong token", timeout=1.0) as client, pytest.raises(SettingsError, match="wrong token"):
        client.get_stats()
    with FeedClient("http://127.0.0.1:9", TOKEN, timeout=0.3) as client:
        with pytest.raises(UpstreamError, match="is `actscope feed` running"):
            client.take(1)
        with pytest.raises(UpstreamError, match="not ready in time"):
            client.wait_for_data()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_iterating_gives_batches_and_says_where_it_stands(feed: Feeding, prefetch: int) -> None:
    """`position` is that after the last batch given, however many were prefetched."""
    with feed.client(group=f"iter{prefetch}") as client:
        batches: Any = client.iter(100, sites="2", prefetch=prefetch)
        first, before = next(batches), Position.parse(client.position)
        second, after = next(batches), Position.parse(client.position)
        assert first.shape == second.shape == (100, 256)
        whole = (after.epoch, after.cursor) == (before.epoch, before.cursor + 100)
        assert whole or (after.epoch == before.epoch + 1 and after.cursor <= 100), (before, after)
        batches.close()


@pytest.mark.parametrize("transport", ["near", "http"])
def test_normalised_rows_have_the_norm_that_trainers_expect(feed: Feeding, transport: str) -> None:
    """normalize=True scales so that the mean norm is sqrt(width), each site by its own; also while rows come on a thread."""
    with feed.client(group=f"norm-{transport}", transport=transport) as client:
        batches: Any = client.iter(1500, normalize=True)
        batch = next(batches)
        assert client.get_stats()["counts"]["granted_rows"] >= 1500
        batches.close()
    assert batch.norm(dim=-1).mean(0).tolist() == pytest.approx([16.0, 16.0], rel=0.1)


def test_views_are_the_feeds_own_memory(feed: Feeding) -> None:
    """zero_copy gives the rows where they lie: no bytes move, and they are those that a copy has."""
    with feed.client(group="views") as client, feed.client(group="copies", transport="http") as other:
        copy = other.take(100, sites="2")
        view = next(client.iter(100, sites="2", zero_copy=True))
        assert view.shape == (100, 256)
        assert client._shm is not None
        mapped = client._shm.rows._private
        assert mapped is not None
        begin = mapped._first_page * mmap.PAGESIZE
        assert begin <= view.data_ptr() < begin + mapped._layout.total_bytes
        for _ in range(100):
            if copy.next == client.position:
                break
            copy = other.take(100, sites="2")  # the other group joined a window later
        assert copy.next == client.position and torch.equal(view, copy.values)
        with pytest.raises(SettingsError, match="names 2"):
            next(client.iter(100, zero_copy=True))


async def test_a_call_that_is_cancelled_is_waited_for_by_the_next(feed: Feeding) -> None:
    """Two calls never run at once, and the position does not pass rows that nobody got."""
    async with AsyncFeedClient(feed.url, TOKEN, group="cancelled", timeout=60.0) as client:
        await client.take(10)
        before = client.position
        for _ in range(3):
            call = asyncio.ensure_future(client.take(10))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        after = await client.take(10)
        assert len(after.values) == 10 and client.position == after.next != before


async def test_the_async_client_does_the_same(feed: Feeding) -> None:
    """Every call is there, and iterating too."""
    async with AsyncFeedClient(feed.url, TOKEN, group="async", timeout=60.0) as client:
        stats = await client.wait_for_data()
        assert stats["ready"]
        assert (await client.get_activations_tensor(20, sites="1")).shape == (20, 256)
        assert set(await client.get_statistics()) == {"layers.1.resid_post", "layers.2.resid_post"}
        n = 0
        async for batch in client.iter(50, prefetch=0):
            assert batch.shape == (50, 2, 256)
            n += 1
            if n == 3:
                break
        assert client.position


def test_the_workers_of_a_data_loader_share_the_rows(feed: Feeding) -> None:
    """Two worker processes are two consumers of one group: no row comes twice."""
    dataset = FeedDataset(
        feed.url, TOKEN, batch_size=100, sites="2", prefetch=1, connect={"group": "loader", "timeout": 60.0}
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    batches = iter(loader)
    rows = torch.cat([next(batches) for _ in range(6)])
    del batches
    assert rows.shape == (600, 256)
    assert len(torch.unique(rows, dim=0)) > 550  # texts that begin alike have rows alike


def test_prefetching_raises_in_the_iterator_and_ends_with_its_reader() -> None:
    """An error of the thread comes out of the iterator; a reader that stops early leaves no thread."""

    def failing(over):  # type: ignore[no-untyped-def]
        yield 1
        raise ValueError("gone")

    items = prefetch_iterator(failing, 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="gone"):
        next(items)

    def endless(over):  # type: ignore[no-untyped-def]
        while True:
            yield 0

    items = prefetch_iterator(endless, 2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "actscope-prefetch"]


def test_the_options_of_a_dataset_are_the_keywords_of_the_client() -> None:
    """`FeedDataset` types what it passes on; its types may not drift from the signatures of both clients."""
    for client in (FeedClient, AsyncFeedClient):
        assert written_hints(ClientOptions) == keywords_of(client.__init__)
        assert written_hints(IterOptions) == keywords_of(client.iter)
