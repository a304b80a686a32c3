"""`actscope bench ring`: latency of a step to another process, rows per second, and a check for torn rows.

The writer is a child process, `python -m actscope.bench.ring --writer`; this process reads. Every row encodes its number,
so that the reader detects torn and misplaced rows. Latency is measured from just before `write` to the return of `read`.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from actscope.bench.support.samples import Result
from actscope.frames import ROW_META, SCORES, Frame, Span, Step
from actscope.ring.host import RingReader, RingSpec, RingWriter, StepBatch

Progress = Callable[[str], None]

#: Row values repeat after this many rows; float32 holds them exactly.
PERIOD = 1 << 20
WIDTH = 8
WARM_UP_STEPS = 50
TORN_ROWS = 10_000_000
_START_S = 30.0


class Stamper:
    """Makes steps whose rows encode their number in the run. Steps of up to `most` rows are slices of prepared arrays."""

    def __init__(self, width: int = WIDTH, most: int = 0) -> None:
        self.width = width
        self._prepared = stamps(np.arange(PERIOD + most), width) if most else None
        self.step = self.row = 0

    def make(self, n_rows: int) -> tuple[Step, list[Frame]]:
        """Make the next step: row `g` has position and token id `g`, and the value `g % PERIOD + column` in each column."""
        positions = np.arange(self.row, self.row + n_rows)
        meta = np.zeros(n_rows, ROW_META)
        meta["position"], meta["token_id"], meta["step"] = positions, positions & 0x7FFFFFFF, self.step + 1
        self.step += 1
        spans = (Span(f"request-{self.step % 7}", self.row, n_rows),)
        self.row += n_rows
        return Step(self.step, time.monotonic_ns(), spans, meta), [Frame(SCORES, self._rows(positions))]

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        if self._prepared is None or not len(positions):
            return stamps(positions, self.width)
        begin = int(positions[0]) % PERIOD
        return self._prepared[begin : begin + len(positions)]


def stamps(positions: np.ndarray, width: int) -> np.ndarray:
    """Return the values of the rows at these positions: float32 [n, width]."""
    return ((positions % PERIOD)[:, None] + np.arange(width)).astype(np.float32)


@dataclass(slots=True)
class Verifier:
    """Verifies batches of stamped steps: every value, and that gaps are as long as the reader reports."""

    rows: int = 0
    torn_rows: int = 0
    miscounted_gaps: int = 0
    _next: tuple[int, int] = field(default=(1, 0))  # step number, row

    def take(self, batch: StepBatch) -> None:
        first = batch.steps[0]
        row = first.spans[0].first_position
        gap = (first.number - self._next[0], row - self._next[1])
        self.miscounted_gaps += gap != (batch.missed_steps, batch.missed_rows)
        positions = np.arange(row, row + len(batch.rows))
        whole = (batch.rows == stamps(positions, batch.rows.shape[1])).all(axis=1)
        whole &= batch.meta["position"] == positions
        whole &= batch.meta["token_id"] == positions & 0x7FFFFFFF
        self.torn_rows += int(len(whole) - whole.sum())
        self.rows += len(batch.rows)
        self._next = (batch.steps[-1].number + 1, row + len(batch.rows))


@contextmanager
def child_writer(spec: RingSpec, *, n_rows: int, seconds: float, rate: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that creates a ring, prints its name, and writes once it gets a line. It is killed at the end if needed."""
    RingWriter.create(spec).close()  # raises here where there is no room: the child could only end
    sizes = [spec.row_capacity, spec.width, spec.step_capacity, spec.span_capacity]
    arguments = ["--writer", *map(str, sizes), "--rows", str(n_rows), "--seconds", str(seconds), "--rate", str(rate)]
    command = [sys.executable, "-m", "actscope.bench.ring", *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
        child.communicate(timeout=_START_S)
    finally:
        child.kill()
        child.wait()


def line_of(child: subprocess.Popen[str]) -> str:
    """Return the next line that the child prints. Raises RuntimeError if it has exited."""
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if not line:
        raise RuntimeError("the writer of the ring bench ended before it said anything: run it again with its stderr")
    return line


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def run(seconds: float = 10.0, progress: Progress | None = None) -> list[Result]:
    """Run the benchmark in about `seconds`. `progress` is called with the current measurement."""
    say = progress or (lambda _: None)
    say("latency at 1,000 steps/s")
    results = latency(seconds * 0.4)
    say("rows per second")
    results += throughput(seconds * 0.2)
    say("torn rows and gaps while the writer overruns the reader")
    return results + overrun(int(TORN_ROWS * min(1.0, seconds / 10.0)))


def latency(seconds: float, runs: int = 5) -> list[Result]:
    """Measure the latency from a write to the read in another process: the p50 and p99 of each run."""
    percentiles = [np.percentile(_latencies_ms(seconds / runs), (50, 99)) for _ in range(runs)]
    p50, p99 = zip(*percentiles, strict=True)
    return [
        _result("latency_p50_ms", [float(v) for v in p50], "ms", bar=0.2, best=min),
        _result("latency_p99_ms", [float(v) for v in p99], "ms", bar=1.0, best=min),
    ]


def _latencies_ms(seconds: float) -> list[float]:
    spec = RingSpec(4096, WIDTH, 1024, 4096)
    taken: list[float] = []
    with child_writer(spec, n_rows=8, seconds=seconds, rate=1000.0) as child:
        reader = RingReader.attach(line_of(child))
        tell(child, "go")
        while reader.wait(0.5 if taken else _START_S):
            batch = reader.read()
            now = time.monotonic_ns()
            if batch is not None:
                taken += [(now - step.time_ns) * 1e-6 for step in batch.steps if step.number > WARM_UP_STEPS]
            if reader.stats().steps >= int(seconds * 1000):
                break
        reader.close()
    if not taken:
        raise RuntimeError("ring bench: no step came within 30 s: the machine is overloaded, run it again")
    return taken


def throughput(seconds: float, runs: int = 3) -> list[Result]:
    """Measure rows written and rows read per second, with a writer at full speed and steps of 512 rows."""
    measured = [_rates(seconds / runs) for _ in range(runs)]
    read, written, missed = zip(*measured, strict=True)
    return [
        _result("rows_per_s", list(read), "rows/s", best=max),
        _result("rows_per_s_written", list(written), "rows/s", best=max),
        _result("rows_missed_share", list(missed), "share", best=min),
    ]


def _rates(seconds: float) -> tuple[float, float, float]:
    spec = RingSpec(1 << 19, WIDTH, 4096, 4096)
    with child_writer(spec, n_rows=512, seconds=seconds) as child:
        reader = RingReader.attach(line_of(child))
        tell(child, "go")
        reader.wait(_START_S)
        started = last = time.perf_counter()
        while reader.wait(1.0):
            reader.read()
            last = time.perf_counter()
        elapsed = last - started
        said, stats = json.loads(line_of(child)), reader.stats()
        reader.close()
    return stats.rows / elapsed, said["rows"] / said["seconds"], stats.missed_rows / said["rows"]


def overrun(rows: int) -> list[Result]:
    """Verify rows while the writer keeps lapping the reader, until `rows` are verified; then check the reader's counts."""
    spec = RingSpec(1 << 14, WIDTH, 1024, 1024)
    verifier = Verifier()
    with child_writer(spec, n_rows=1024, seconds=0.0) as child:
        reader = RingReader.attach(line_of(child))
        tell(child, "go")
        while verifier.rows < rows and reader.wait(_START_S):
            _take(reader, verifier)
        tell(child, "stop")
        said = json.loads(line_of(child))
        while reader.wait(0.0):
            _take(reader, verifier)
        stats = reader.stats()
        reader.close()
    account = (stats.rows + stats.missed_rows, stats.steps + stats.missed_steps)
    verifier.miscounted_gaps += account != (said["rows"], said["steps"])
    return [
        _result("torn_rows", [verifier.torn_rows], f"rows of {verifier.rows}", bar=0, best=min),
        _result("miscounted_gaps", [verifier.miscounted_gaps], f"gaps ({stats.missed_rows} rows)", bar=0, best=min),
        _result("raced_steps", [stats.raced_steps], "steps caught while overwritten", best=max),
    ]


def _take(reader: RingReader, verifier: Verifier) -> None:
    batch = reader.read()
    if batch is not None:
        verifier.take(batch)


def _result(
    name: str, values: list[float], unit: str, *, bar: float | None = None, best: Callable[..., float]
) -> Result:
    """Make a result. `best` is min or max: whether lower or higher is better, and how a bar is met."""
    value = statistics.median(values)
    ok = bar is None or (value < bar or value == bar == 0 if best is min else value >= bar)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": "none: an absolute figure",
        "runs": len(values),
        "min": min(values),
        "max": max(values),
        "bar": bar,
        "ok": ok,
    }


# -- the writer's process --


def write_for(writer: RingWriter, stamper: Stamper, n_rows: int, seconds: float, rate: float) -> float:
    """Write stamped steps at `rate` per second (0: at full speed) for `seconds` (0: until a line comes). Returns the duration."""
    stopped = _stdin_watch() if not seconds else lambda: False
    ready = [stamper.make(n_rows)]  # made after the previous write, not between its own time stamp and write
    started = due = time.perf_counter()
    until = started + seconds if seconds else float("inf")
    while time.perf_counter() < until and not stopped():
        step, frames = ready.pop()
        if rate:
            due += 1.0 / rate
            time.sleep(max(0.0, due - time.perf_counter()))
        writer.write(_stamped_now(step), frames)
        ready.append(stamper.make(n_rows))
    return time.perf_counter() - started


def _stamped_now(step: Step) -> Step:
    return Step(step.number, time.monotonic_ns(), step.spans, step.meta, step.generation)


def _stdin_watch() -> Callable[[], bool]:
    """Return a function that is true once a line has come, without a system call per step."""
    import threading

    seen = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        seen.set()

    threading.Thread(target=listen, daemon=True).start()
    return seen.is_set


def _writer_main(arguments: argparse.Namespace) -> None:
    writer = RingWriter.create(RingSpec(*arguments.writer))
    try:
        stamper = Stamper(writer.spec.width, 0 if arguments.rate else arguments.rows)
        print(writer.name, flush=True)
        sys.stdin.readline()
        elapsed = write_for(writer, stamper, arguments.rows, arguments.seconds, arguments.rate)
        stats = writer.stats()
        print(json.dumps({"steps": stats.steps, "rows": stats.rows, "seconds": elapsed}), flush=True)
        sys.stdin.read()  # until the reader has drained the rest
    finally:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actscope.bench.ring", description=__doc__)
    parser.add_argument("--writer", nargs=4, type=int, metavar="N", help="rows, width, steps, spans")
    parser.add_argument("--rows", type=int, default=8, help="rows in a step")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="steps per second; 0: as fast as possible")
    arguments = parser.parse_args()
    if arguments.writer:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the command, which speaks for its children too
        _writer_main(arguments)
        return
    print(json.dumps(run(arguments.seconds, lambda what: print(what, file=sys.stderr)), indent=1))


if __name__ == "__main__":
    main()
