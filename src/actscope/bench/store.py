"""`actscope bench store`: write speed of the recorder against a raw direct write of the same bytes, peak memory, and losses.

The recorder, with codec none, and the raw writer alternate, each in a process of its own that writes as many bytes and
ends with an fdatasync. Another child writes to a slow disk, to measure peak memory under back pressure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actscope.bench.support.samples import Result
from actscope.frames import ROW_META, Frame, Span, Step
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.store.writing.buffers import aligned_memory

Progress = Callable[[str], None]

SITES = tuple(f"layers.{i}.resid_post" for i in range(4))
WIDTH = 2048
ROWS = 1024  # rows per step: 8 MiB per site
STEP_BYTES = len(SITES) * ROWS * WIDTH * 4
MEMORY = 256 << 20
_BUFFER = 8 << 20
#: Steps of a run: 4.5 GiB, so that opening and closing a recording (three fsyncs) weigh little; 1.5 GiB in a short run.
_SUSTAINED, _BRIEF = 144, 48


def run(seconds: float, progress: Progress, folder: Path | None = None) -> list[Result]:
    """Run about `seconds` of pairs. Files go to `folder`, or to a temporary one in the working directory, and are removed."""
    with tempfile.TemporaryDirectory(prefix=".actscope-bench-", dir=folder or Path.cwd()) as name:
        home = Path(name)
        ratios, rates, raw = _pairs(home, seconds, progress)
        progress("memory, with a disk that does not keep up")
        slow = _child(home, "slow", 24)
        return [
            _result("write_ratio_none", ratios, "x", "raw sequential O_DIRECT write of the same bytes", bar=0.9),
            _result("write_gbps_none", rates, "GB/s", "none: an absolute figure"),
            _result("raw_write_gbps", raw, "GB/s", "none: the baseline itself"),
            _result("lost_rows", [slow["lost_rows"]], "rows", f"{slow['rows']} rows put", bar=0, lower=True),
            _result(
                "peak_rss_mb",
                [slow["rss_mb"]],
                "MiB",
                f"memory limit {MEMORY >> 20} MiB, {slow['put_mb']:.0f} MiB put, of it {slow['blocked_s']:.1f} s waiting; "
                "growth over the idle process",
                bar=MEMORY / (1 << 20),
                lower=True,
            ),
        ]


def _pairs(home: Path, seconds: float, progress: Progress) -> tuple[list[float], list[float], list[float]]:
    n_steps = _SUSTAINED if seconds >= 10 else _BRIEF
    ratios: list[float] = []
    rates: list[float] = []
    raws: list[float] = []
    until = time.monotonic() + seconds
    while len(ratios) < 3 or time.monotonic() < until:
        progress(f"pair {len(ratios) + 1}")
        order = ("record", "raw") if len(ratios) % 2 else ("raw", "record")
        took = {what: _child(home, what, n_steps) for what in order}
        rates.append(took["record"]["gbps"])
        raws.append(took["raw"]["gbps"])
        ratios.append(rates[-1] / raws[-1])
    return ratios, rates, raws


def _child(home: Path, what: str, n_steps: int) -> dict[str, float]:
    target = home / what
    try:
        command = [sys.executable, "-m", "actscope.bench.store", what, str(target), str(n_steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    finally:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _result(
    name: str, values: list[float], unit: str, baseline: str, *, bar: float | None = None, lower: bool = False
) -> Result:
    value = statistics.median(values)
    ok = bar is None or (value <= bar if lower else value >= bar)
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": len(values),
        "min": min(values), "max": max(values), "bar": bar, "ok": ok,
    }  # fmt: skip


# -- the children --


def steps(n: int) -> Iterator[tuple[Step, list[Frame]]]:
    """Yield `n` steps of `ROWS` rows. The first column of each row is its number in the run."""
    rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    for number in range(1, n + 1):
        meta = np.zeros(ROWS, ROW_META)
        meta["position"] = np.arange((number - 1) * ROWS, number * ROWS)
        span = Span("bench", int(meta["position"][0]), ROWS)
        fresh = [rows.copy() for _ in SITES]
        for site in fresh:
            site[:, 0] = meta["position"]
        step = Step(number, time.monotonic_ns(), (span,), meta)
        yield step, [Frame(name, site) for name, site in zip(SITES, fresh, strict=True)]


def _record(target: Path, n_steps: int) -> dict[str, float]:
    prepared = list(steps(min(n_steps, 8)))
    begin = time.perf_counter()
    recorder = Recorder.create(target, RecordingSpec(SITES, "none"), PipelineOptions(memory_bytes=MEMORY))
    for number in range(n_steps):
        step, frames = prepared[number % len(prepared)]
        recorder.write(Step(number + 1, step.time_ns, step.spans, step.meta), frames)
    recorder.close()
    return {"gbps": n_steps * STEP_BYTES / (time.perf_counter() - begin) / 1e9}


def _raw(target: Path, n_steps: int) -> dict[str, float]:
    """Measure the strongest baseline: one buffer on huge pages, filled once, written with O_DIRECT, then fdatasync."""
    buffer = aligned_memory(_BUFFER)
    buffer[:] = np.random.default_rng(0).bytes(_BUFFER)
    begin = time.perf_counter()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0), 0o600)
    for offset in range(0, n_steps * STEP_BYTES, _BUFFER):
        os.pwrite(fd, buffer, offset)
    os.fdatasync(fd)
    os.close(fd)
    return {"gbps": n_steps * STEP_BYTES / (time.perf_counter() - begin) / 1e9}


def _slow_down_writes() -> None:
    """Slow this process's writes down to about 100 MB/s."""
    pwrite, pwritev = os.pwrite, os.pwritev

    def slow_pwrite(fd: int, data: Any, offset: int) -> int:
        time.sleep(len(data) / 100e6)
        return pwrite(fd, data, offset)

    def slow_pwritev(fd: int, parts: Any, offset: int, flags: int = 0) -> int:
        time.sleep(sum(map(len, parts)) / 100e6)
        return pwritev(fd, parts, offset, flags)

    os.pwrite, os.pwritev = slow_pwrite, slow_pwritev


def _slow(target: Path, n_steps: int) -> dict[str, float]:
    """Record to a simulated disk of about 100 MB/s, where writes sleep. Measures peak memory and lost rows."""
    _slow_down_writes()
    first = next(steps(1))
    del first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Recorder.create(target, RecordingSpec(SITES, "none"), PipelineOptions(memory_bytes=MEMORY)) as recorder:
        for step, frames in steps(n_steps):
            recorder.write(step, frames)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Recording.open(target)
    right = sum(int((rows.values[:, 0] == rows.labels["position"]).sum()) for s in SITES for rows in found.iter_rows(s))
    put = n_steps * ROWS * len(SITES)
    return {
        "rss_mb": (peak - before) / 1024,
        "put_mb": n_steps * STEP_BYTES / (1 << 20),
        "blocked_s": recorder.stats().seconds_blocked,
        "rows": put,
        "lost_rows": put - right,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actscope.bench.store", description=__doc__)
    parser.add_argument("what", choices=["record", "raw", "slow"])
    parser.add_argument("target", type=Path)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the command, which speaks for its children too
    child = {"record": _record, "raw": _raw, "slow": _slow}[arguments.what]
    print(json.dumps(child(arguments.target, arguments.steps)))


if __name__ == "__main__":
    main()
