"""Throughput of row generation with the built-in model: a feed that a consumer drains, against SAELens's store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing

import torch

from actscope.bench.support import saelens
from actscope.bench.support.feed_servers import Feed, feed, settle
from actscope.bench.support.samples import Progress, Result, Samples, absent, result
from actscope.feed.client.client import FeedClient

LAYER, CONTEXT, WINDOW_ROWS = 2, 128, 8192
#: Seconds that SAELens takes to import and to start. A shorter run omits it.
PEER_NEEDS_S = 5.0
_ROUNDS = 3


class Draining:
    """A consumer on the same machine that takes whole windows. A take returns when a window is full."""

    def __init__(self, running: Feed) -> None:
        self._client = FeedClient(running.url, running.token, transport="near")
        self._out = torch.zeros(WINDOW_ROWS, 256)
        self.close = self._client.close

    def rows_per_second(self, seconds: float) -> float:
        """Return rows per second of windows filled while the consumer waits. Windows that were ready before do not count."""
        for _ in range(3):
            self._client.take(WINDOW_ROWS, out=self._out)
        begin, windows = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds or not windows:
            self._client.take(WINDOW_ROWS, out=self._out)
            windows += 1
        return windows * WINDOW_ROWS / (time.perf_counter() - begin)

    def settle(self) -> None:
        """Wait until the generator is idle, so that the next measurement has the machine to itself."""
        settle(self._client)


def measure(seconds: float, progress: Progress) -> list[Result]:
    """Measure rows per second of the feed and of SAELens's stores, alternately."""
    progress("the built-in model in a feed")
    settings = {"sites": LAYER, "context": CONTEXT, "buffer_rows": 2 * WINDOW_ROWS, "texts": saelens.TEXTS}
    with feed(**settings) as running, closing(Draining(running)) as draining:
        draining.settle()
        if not saelens.installed() or seconds < PEER_NEEDS_S:
            why = "this run is too short for it" if saelens.installed() else "sae-lens is not installed"
            return [_own([draining.rows_per_second(seconds)]), *(absent(name, "x", why) for name in _PEERS)]
        return _beside_saelens(draining, seconds, progress)


def _beside_saelens(draining: Draining, seconds: float, progress: Progress) -> list[Result]:
    progress("SAELens's store")
    command = [sys.executable, "-m", "actscope.bench.support.saelens", str(CONTEXT), str(LAYER)]
    samples = Samples()
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        if not child.stdout.readline():
            return [_own([draining.rows_per_second(seconds)]), *(absent(n, "x", "it does not start") for n in _PEERS)]
        for number in range(_ROUNDS):
            progress(f"the built-in model, round {number + 1}")
            samples.add("feed", draining.rows_per_second(seconds / _ROUNDS / 2))
            draining.settle()
            print(seconds / _ROUNDS / 2, file=child.stdin, flush=True)
            for name, (rows, spent) in zip(_PEERS, json.loads(child.stdout.readline()), strict=True):
                samples.add(name, rows / spent)
        child.stdin.close()
    ours = [_own(samples.of["feed"])]
    return ours + [result(name, samples.ratios("feed", name), "x", what) for name, what in _PEERS.items()]


_PEERS = {
    "vs_saelens_store": "rows/s of SAELens's ActivationsStore on the same model, texts, layer and context",
    "vs_saelens_store_tokenized": "the same, its texts tokenized and put together beforehand",
}


def _own(values: list[float]) -> Result:
    what = f"none: an absolute figure; the built-in model's layer {LAYER}, context {CONTEXT}, with its labels and statistics"
    return result("generated_rows_per_s", values, "rows/s", what)
