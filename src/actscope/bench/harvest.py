"""`actscope bench harvest`: a harvest's overhead over the model, in time and in bytes, and two workers against one.

A worker computes units of the built-in model in this process, alternating with the bare reader on the same pieces. A unit's
fixed costs (claim, receipt, listing) are measured on a local directory. The startup of a worker is a figure of its own and
part of no other.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging as transformers_logging

from actscope.bench.support.samples import Result
from actscope.engines import builtin
from actscope.extraction.texts import open_texts
from actscope.harvest import layout
from actscope.harvest.claims import Claims
from actscope.harvest.driver import harvest
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.settings import Format, HarvestSettings
from actscope.harvest.storage import open_storage
from actscope.harvest.storage.local import LocalStorage
from actscope.harvest.worker import UnitWorker
from actscope.harvest.workers.local import LocalCrew
from actscope.harvest.workers.messages import WorkerJob

Progress = Callable[[str], None]

_UNIT_TEXTS = 64
_BLOCK = 64 << 20
_UNITS = 200
_TEXTS = "texts.jsonl"


def run(seconds: float, progress: Progress) -> list[Result]:
    """Run about `seconds` of pairs, then the rest. Files go to a temporary folder in the working directory."""
    with tempfile.TemporaryDirectory(prefix=".actscope-bench-", dir=Path.cwd()) as name:
        home = Path(name)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        progress("texts")
        _write_texts(home / _TEXTS)
        return [
            *_pairs(home, seconds, progress),
            *_bytes(home, progress),
            *_publishing(home, progress),
            *_unit_costs(home, progress),
            *_scaling(home, progress),
        ]


def settings(home: Path, *, format: Format = "safetensors") -> HarvestSettings:
    """Return settings for three sites of the built-in model, with bfloat16 rows and one thread."""
    return HarvestSettings(
        model=builtin.NAME, dataset=str(home / _TEXTS), sites="first,middle,last", dtype="bfloat16",
        unit_texts=_UNIT_TEXTS, threads=1, format=format,
    )  # fmt: skip


def _write_texts(path: Path) -> None:
    """Write texts to a file, as users have them: generating synthetic texts during the harvest costs more than reading."""
    texts = open_texts("builtin", n=24 * _UNIT_TEXTS)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.read(range(len(texts)))))


def _pairs(home: Path, seconds: float, progress: Progress) -> list[Result]:
    """Measure tokens per second of complete units, and of the bare reader on the same pieces, alternately."""
    worker = UnitWorker(settings(home), open_storage(str(home / "pairs")))
    plan = worker.propose().plan
    worker.run(plan, 0)
    whole: list[float] = []
    bare: list[float] = []
    until = time.monotonic() + seconds
    while len(whole) < 3 or (time.monotonic() < until and len(whole) < plan.n_units - 1):
        unit = len(whole) + 1
        progress(f"pair {unit}")
        parts = (_whole, _bare) if unit % 2 else (_bare, _whole)
        found = {part: part(worker, plan, unit) for part in parts}
        whole.append(found[_whole])
        bare.append(found[_bare])
    worker.close()
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    return [
        _result("harvest_ratio", ratios, "x", "the bare reader over the same pieces, in turn", bar=0.9),
        _result("tokens_per_s", whole, "tokens/s", "none: the built-in model, 3 sites, one thread"),
        _result("reader_tokens_per_s", bare, "tokens/s", "none: the baseline itself"),
    ]


def _whole(worker: UnitWorker, plan: HarvestPlan, unit: int) -> float:
    begin = time.perf_counter()
    receipt = worker.run(plan, unit)
    return receipt.tokens / (time.perf_counter() - begin)


def _bare(worker: UnitWorker, plan: HarvestPlan, unit: int) -> float:
    cut = worker._cut(plan.text_numbers(plan.unit(unit)))
    pieces = [owned.piece for owned in cut.pieces]
    begin = time.perf_counter()
    worker._reader.read(pieces)
    return cut.n_tokens / (time.perf_counter() - begin)


def _bytes(home: Path, progress: Progress) -> list[Result]:
    """Measure the bytes of a shard per row, against those of the bare values."""
    found = []
    forms: tuple[tuple[Format, int], ...] = (("safetensors", 2), ("arrow", 4))
    for form, width in forms:
        progress(f"bytes of {form}")
        worker = UnitWorker(settings(home, format=form), open_storage(str(home / form)))
        plan = worker.propose().plan
        receipt = worker.run(plan, 0)
        worker.close()
        size = sum(file.bytes for file in receipt.files) / receipt.rows
        values = len(plan.sites) * plan.d_model * width
        baseline = f"{values} bytes of values: {len(plan.sites)} sites x {plan.d_model} x {width}"
        found.append(_result(f"bytes_per_row_{form}", [size], "bytes", baseline))
    return found


def _publishing(home: Path, progress: Progress) -> list[Result]:
    progress("publishing")
    storage = LocalStorage(home / "publishing")
    data = bytearray(_BLOCK)
    sums, puts = [], []
    for i in range(5):
        data[:8] = i.to_bytes(8, "little")
        sums.append(_BLOCK / 1e9 / _timed(lambda: hashlib.sha256(data).hexdigest()))
        puts.append(_BLOCK / 1e9 / _timed(lambda i=i: storage.put(f"shards/{i}", data)))  # type: ignore[misc]
    return [
        _result("sha256_gbps", sums, "GB/s", "none: one core, 64 MiB"),
        _result("publish_gbps", puts, "GB/s", "none: 64 MiB to a local file, with both fsyncs"),
    ]


def _unit_costs(home: Path, progress: Progress) -> list[Result]:
    """Measure a unit's fixed costs: a durable claim, a durable receipt, and a listing of all receipts."""
    progress("claims")
    storage = LocalStorage(home / "claims")
    with Claims(storage) as claims:
        takes = [_timed(lambda unit=unit: claims.take(unit)) * 1000 for unit in range(_UNITS)]  # type: ignore[misc]
    receipts = [
        _timed(lambda unit=unit: storage.put_new(layout.receipt(unit), bytes(600))) * 1000  # type: ignore[misc]
        for unit in range(_UNITS)
    ]
    looks = [_timed(lambda: storage.names(layout.RECEIPTS)) * 1000 for _ in range(20)]
    return [
        _result("claim_ms", takes, "ms", "none: put-if-absent of a claim on a local disk"),
        _result("receipt_ms", receipts, "ms", "none: put-if-absent of a receipt on a local disk"),
        _result("look_ms", looks, "ms", f"none: listing {_UNITS} receipts"),
    ]


def _scaling(home: Path, progress: Progress) -> list[Result]:
    """Measure two processes against one, after the models are open, and the time that a worker takes to open it."""
    rates: dict[int, float] = {}
    opening: list[float] = []
    for workers in (1, 2):
        progress(f"{workers} processes")
        rates[workers], started = _steady_rate(home, workers)
        opening.append(started)
    return [
        _result("two_workers", [rates[2] / rates[1]], "x", f"one worker; this machine's {_cores()} cores are shared"),
        _result("worker_opening_s", opening, "s", "none: a process until its model is open and the plan proposed"),
    ]


def _steady_rate(home: Path, workers: int) -> tuple[float, float]:
    """Return units per second while all workers are busy, and the seconds until the first progress report.

    The rate excludes the first progress reports (`5 + 2 * workers` of them) and the last one.
    """
    out = home / f"scaling-{workers}"
    job = WorkerJob(settings=settings(home), out=str(out))
    times: list[float] = []
    begin = time.monotonic()
    crew = LocalCrew(job, workers)
    harvest(open_storage(str(out)), crew, lambda stage, done, total: times.append(time.monotonic()))
    first, last = 1 + 2 * workers + 4, len(times) - 2
    return (last - first) / (times[last] - times[first]), times[0] - begin


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _result(name: str, values: list[float], unit: str, baseline: str, *, bar: float | None = None) -> Result:
    value = statistics.median(values)
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": len(values),
        "min": min(values), "max": max(values), "bar": bar, "ok": bar is None or value >= bar,
    }  # fmt: skip
