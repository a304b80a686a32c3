"""Many clients at once. FEED_LOAD_SECONDS=60 makes it a minute; by default it takes a few seconds."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
from feed.conftest import CONTEXT, TEXTS
from support.feed.feeding import Feeding, feeding
from support.feed.known import Known

from actscope.errors import FeedEnded

CLIENTS = 64
SECONDS = float(os.environ.get("FEED_LOAD_SECONDS", "3"))
ROWS_PER_SECOND = 3000  # about what the built-in model gives here


class _Client(threading.Thread):
    """Takes rows until the epochs end, and checks each."""

    def __init__(self, feed: Feeding, rows: Known, number: int) -> None:
        super().__init__()
        self._feed, self._rows = feed, rows
        self._transport = "near" if number % 2 else "http"
        self._size = 20 + number
        self.counts = np.zeros(len(rows.labels), np.int64)
        self.seconds: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._feed.client(transport=self._transport) as client:
                while True:
                    begin = time.perf_counter()
                    batch = client.take(self._size, labels=True)
                    self.seconds.append(time.perf_counter() - begin)
                    assert batch.labels is not None
                    np.add.at(self.counts, self._rows.check(batch.labels, batch.values.numpy()), 1)
        except FeedEnded:
            return
        except BaseException as error:
            self.error = error


def test_none_of_64_clients_gets_a_torn_row_or_one_that_another_has_had(rows: Known) -> None:
    """Over some epochs, all clients together get each row exactly once an epoch, whole, near and far alike."""
    epochs = max(2, round(SECONDS * ROWS_PER_SECOND / len(rows.labels)))
    with feeding(sites="1,2", texts=TEXTS, context=CONTEXT, buffer_rows=1500, windows=3, epochs=epochs) as feed:
        with feed.client(group="nobody", transport="http") as watching:
            watching.wait_for_data()
        clients = [_Client(feed, rows, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        counts = feed.server.service.broker.buffer.counts
    assert [client.error for client in clients if client.error] == []
    assert (np.sum([client.counts for client in clients], axis=0) == epochs).all()
    assert counts.delivered_rows == counts.granted_rows == epochs * len(rows.labels)
    seconds = np.sort(np.concatenate([client.seconds for client in clients]))
    print(
        f"\n{len(seconds)} batches by {CLIENTS} clients, {epochs} epochs of {len(rows.labels)} rows: "
        f"p50 {np.quantile(seconds, 0.5) * 1e3:.1f} ms, p99 {np.quantile(seconds, 0.99) * 1e3:.1f} ms"
    )
