"""What comes out of a feed: the model's own rows, each once, in an order that can be had again."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from feed.conftest import CONTEXT, TEXTS
from support.feed.feeding import Feeding, feeding
from support.feed.known import Known

from actscope.errors import FeedEnded
from actscope.feed.client.client import Batch, FeedClient


def everything(client: FeedClient, n: int = 300, **options: Any) -> list[Batch]:
    """All batches until the epochs end."""
    batches = []
    while True:
        try:
            batches.append(client.take(n, labels=True, **options))
        except FeedEnded:
            return batches


def labels_of(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.labels for batch in batches if batch.labels is not None])


@pytest.mark.parametrize("transport", ["near", "http"])
def test_one_epoch_is_every_row_once_and_each_is_the_models_own(rows: Known, transport: Any) -> None:
    """Over an epoch every wanted position comes exactly once, labelled, and equals transformers' hidden state (fp32, 1e-4)."""
    with (
        feeding(sites="1,2", texts=TEXTS, context=CONTEXT, buffer_rows=3000, epochs=1) as feed,
        feed.client(transport=transport) as client,
    ):
        batches = everything(client)
        assert all(batch.values.shape[1:] == (2, 256) for batch in batches)
    labels = labels_of(batches)
    found = rows.check(labels, np.concatenate([batch.values.numpy() for batch in batches]))
    assert sorted(found.tolist()) == list(range(len(rows.labels)))
    assert neighbours(labels["text"], 1500) == pytest.approx(0, abs=0.02)


def neighbours(texts: np.ndarray, window_rows: int) -> float:
    """How much more often two rows that follow each other are of one text than in a uniform shuffle of each window."""
    more = []
    for start in range(0, len(texts), window_rows):
        window = texts[start : start + window_rows].astype(np.int64)
        share = np.unique(window, return_counts=True)[1] / len(window)
        more.append((np.diff(window) == 0).mean() - (share**2).sum())
    return float(np.mean(more))


def test_consumers_of_a_group_share_and_groups_get_the_same(feed: Feeding) -> None:
    """Two consumers of a group, near and far, together get what another group gets alone."""
    for attempt in range(10):  # until both groups begin in the same window
        group = f"pair{attempt}"
        with feed.client(group=group) as near, feed.client(group=group, transport="http") as far:
            pair = [client.take(100, labels=True) for client in (near, far, near, far)]
        with feed.client(group=f"alone{attempt}") as alone:
            one = alone.take(400, labels=True)
        if one.position == pair[0].position:
            break
    assert one.position == pair[0].position
    texts = labels_of(pair)
    assert len(np.unique(texts)) == 400 and (labels_of([one]) == texts).all()


def test_http_and_memory_give_the_same_bytes(feed: Feeding) -> None:
    """The transports differ in speed alone: the same position has the same rows, labels and shapes."""
    with feed.client(group="m") as near, feed.client(group="h", transport="http") as far:
        a, b = near.take(500, sites="2", labels=True), far.take(500, sites="2", labels=True)
        for _ in range(100):
            if a.position == b.position:
                break
            a = near.take(500, sites="2", labels=True)  # the other group joined a window later
    assert a.position == b.position and a.labels is not None and b.labels is not None
    assert torch.equal(a.values, b.values) and a.values.shape == (500, 256)
    assert np.array_equal(a.labels, b.labels) and a.sites == b.sites == ("layers.2.resid_post",)


def test_a_killed_generator_and_a_resumed_feed_give_the_same_stream() -> None:
    """The same seed gives the same bits: from any position on, and also when the generator was killed on the way."""
    options: dict[str, Any] = {"texts": 60, "buffer_rows": 1200, "seed": 5, "serves": 2}
    with feeding(**options) as feed, feed.client() as client:
        client.wait_for_data(100)
        os.kill(feed.generator_pid, signal.SIGKILL)
        batches = [client.take(100, labels=True) for _ in range(30)]
        assert client.get_stats()["generator"]["restarts"] == 1
    with feeding(resume=batches[17].next.partition("@")[0], **options) as feed, feed.client() as client:
        again = [client.take(100, labels=True) for _ in range(12)]
    assert [batch.next for batch in again] == [batch.next for batch in batches[18:]]
    for one, other in zip(again, batches[18:], strict=True):
        assert torch.equal(one.values, other.values) and (labels_of([one]) == labels_of([other])).all()
