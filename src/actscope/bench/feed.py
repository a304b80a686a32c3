"""`actscope bench feed`: how fast rows reach a trainer, against a bare server, httpx, memcpy, a DataLoader and SAELens's store.

Transport is measured on a feed whose buffer is full: two windows of 64 MiB, rows of width 2048 in bfloat16, which its generator
has filled from a random model of that width. A group that has taken one row prevents their refill. Each measurement is a
group of its own, which gets every row twice: first in memory order, then gathered from all over the window (`serves=2`).
Results without "gather" in their name are of rows in memory order.

Against SAELens, both sides run the built-in model over the same texts while rows are taken, alternately; rows that the feed
had ready beforehand do not count. Values are medians over rounds, ratios are of pairs in the same round.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from actscope.bench.support import feed_generating
from actscope.bench.support.feed_loader import Loaders
from actscope.bench.support.feed_servers import WIDTH, bare, feed, make_wide_model
from actscope.bench.support.feed_transport import SMALL, WINDOWS, Rounds, TransportSizes, all_rows, keep
from actscope.bench.support.samples import Progress, Result, Samples, result

MIN_ROUNDS = 3


def run(seconds: float, progress: Progress) -> list[Result]:
    """Run the benchmark in about `seconds` plus the time to start: half for transport, half for generation."""
    with tempfile.TemporaryDirectory(prefix="actscope-bench-") as name:
        results = transport(Path(name), seconds / 2, progress)
    return results + feed_generating.measure(seconds / 2, progress)


def transport(
    folder: Path,
    seconds: float,
    progress: Progress,
    sizes: TransportSizes = TransportSizes(),  # noqa: B008 - frozen
) -> list[Result]:
    """Measure the transport of ready rows to a consumer. Files go to `folder`."""
    progress("filling a buffer")
    model = make_wide_model(folder / "model")
    with feed(model=model, **sizes.settings) as running, bare(sizes.answer_bytes, WINDOWS) as plain:
        keep(running, sizes)
        loaders = Loaders(folder / "rows.safetensors", all_rows(running, sizes), sizes.batch)
        rounds = Rounds(running, plain, loaders, sizes)
        until = time.monotonic() + seconds
        while rounds.done < MIN_ROUNDS or time.monotonic() < until:
            progress(f"transport, round {rounds.done + 1}")
            rounds.one()
    return _results(rounds.samples, sizes)


def _results(samples: Samples, sizes: TransportSizes) -> list[Result]:
    of, ratios = samples.of, samples.ratios
    answer = f"{sizes.answer_bytes / (1 << 20):g} MiB an answer"
    memory = f"none: an absolute figure; {sizes.batch} rows of {WIDTH} bf16 a batch"
    loaders = ("loader", "loader_2_workers", "loader_by_batch")
    best = [max(speeds) for speeds in zip(*(of[name] for name in loaders), strict=True)]
    bare_uvicorn = f"a bare uvicorn, {answer}, the same reader"
    small = f"none: an absolute figure; {SMALL} rows"
    return [
        result("http_ratio", ratios("http", "bare"), "x", bare_uvicorn, bar=0.9),
        result("http_gather_ratio", ratios("http_gathered", "bare"), "x", bare_uvicorn),
        result("http_gbps", of["http"], "GB/s", "none: an absolute figure"),
        result("bare_http_gbps", of["bare"], "GB/s", "none: the baseline itself"),
        result("client_vs_httpx", ratios("client", "httpx"), "x", f"httpx .get().content, {answer}, the same feed", bar=4.0),
        result("client_new_tensor_vs_httpx", ratios("client_new", "httpx"), "x", "the same; a new tensor each time"),
        result("client_http_gbps", of["client"], "GB/s", "none: an absolute figure"),
        result("httpx_gbps", of["httpx"], "GB/s", "none: the baseline itself"),
        result("zero_copy_gbps", of["near"], "GB/s", f"{memory}, copied to the trainer's own", bar=10.0),
        result("zero_copy_vs_memcpy", ratios("near", "memcpy"), "x", "torch's copy_ of the same bytes"),
        result("memcpy_gbps", of["memcpy"], "GB/s", "none: the baseline itself"),
        result("first_round_gbps", of["near_first"], "GB/s", f"{memory}, whose pages are mapped meanwhile"),
        result("zero_copy_view_gbps", of["view"], "GB/s", f"{memory}, of which one value a page is looked at"),
        result("turn_gather_gbps", of["near_gathered"], "GB/s", f"{memory}, from all over a window"),
        result("near_rows_per_s", [v * 1e9 / WIDTH / 2 for v in of["near"]], "rows/s", memory),
        result("vs_dataloader", [a / b for a, b in zip(of["near"], best, strict=True)], "x",
               "the best of three DataLoaders over mapped safetensors of the same rows, shuffled"),
        result("dataloader_gbps", of["loader"], "GB/s", "none: row by row, in the trainer's process"),
        result("dataloader_2_workers_gbps", of["loader_2_workers"], "GB/s", "none: row by row, two workers"),
        result("dataloader_by_batch_gbps", of["loader_by_batch"], "GB/s", "none: a list of rows at once"),
        *(result(name, of[name], "ms", small) for name in of if name.endswith("_ms")),
    ]  # fmt: skip
