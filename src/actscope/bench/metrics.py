"""`actscope bench metrics`: are the collectors right, what do they cost, and does the timeline explain when tokens come?

Counts of I/O on a loop device are compared with /proc/diskstats, off-CPU time of a child with its schedstat. The cost is measured
while both collectors run and the machine does what it does, and once more while a child switches as fast as it can.

The timeline needs no root: 64 requests at once run on the built-in model, and where vLLM is installed on vLLM too. Each of their
tokens has a gap that parts explain.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from actscope.bench.support.samples import Progress, Result, absent
from actscope.extras import MODEL, SERVER, missing
from actscope.metrics.lines import IoLine, SystemLine
from actscope.metrics.meters import IoMeter, SystemMeter
from actscope.metrics.sources.blockio import BpfIo
from actscope.metrics.sources.devices import BlockDevices
from actscope.metrics.sources.diskstats import read_diskstats
from actscope.metrics.sources.kernel import why_no_programs
from actscope.metrics.sources.offcpu import BpfSystem

_NAMES = ("blockio_count_error", "offcpu_error", "cpu_percent", "cpu_percent_storm", "events_lost_storm")
_REQUESTS = 2000
_SLEEPER = "import sys,time\nfor line in sys.stdin:\n [time.sleep(0.005) for _ in range(int(line))]; print(flush=True)"
_STORM = (
    "import os,sys\nr,w=os.pipe(); a,b=os.pipe()\n"
    "if os.fork()==0:\n while os.read(r,1): os.write(b,b'x')\n os._exit(0)\n"
    "os.close(r); n=0; print(flush=True)\n"
    "while True: os.write(w,b'x'); os.read(a,1)"
)


def run(seconds: float = 20.0, progress: Progress | None = None) -> list[Result]:
    """Run the benchmark in about `seconds`. `progress` is called with the current measurement."""
    say = progress or (lambda _: None)
    return [*_collectors(seconds, say), *_timeline(say)]


def _timeline(say: Progress) -> list[Result]:
    return [*_builtin_timeline(say), *_vllm_timeline(say)]


def _builtin_timeline(say: Progress) -> list[Result]:
    absentees = missing(*MODEL, *SERVER)
    if absentees:
        return [absent("timeline_explained_p01", "share", f"not installed: {', '.join(absentees)}")]
    from actscope.bench.gateway import running_gateway  # it needs the packages that were looked for
    from actscope.bench.support.timeline import run_timeline

    return run_timeline(running_gateway, say)


def _vllm_timeline(say: Progress) -> list[Result]:
    absentees = missing("vllm", "torch", *SERVER)
    if absentees:
        return [absent("timeline_explained_p01_vllm", "share", f"not installed: {', '.join(absentees)}")]
    from actscope.bench.support.timeline import run_vllm_timeline

    return run_vllm_timeline(say)


def _collectors(seconds: float, say: Progress) -> list[Result]:
    reason = why_no_programs("actscope bench metrics", needs_pids=True)
    if reason:
        return [absent(name, "", reason) for name in _NAMES]
    say("requests on a loop device")
    results = _requests()
    say("off-CPU time of a child")
    results.append(_off_cpu(seconds / 4))
    say("cost at this machine's load")
    usual = _cost(seconds / 3)
    say("cost and losses in a storm of switches")
    with _child(_STORM):
        storm = _cost(seconds / 4)
    return [
        *results,
        _result("cpu_percent", usual[0], "% of a core", "0: no collectors", bar=0.5),
        _result("cpu_percent_storm", storm[0], "% of a core", "two processes that switch as fast as they can"),
        _result("events_lost_storm", storm[1], f"of {storm[2]} events, counted by the kernel", "0: none"),
    ]


def _requests() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="actscope-bench-") as directory:
        file = Path(directory) / "disk"
        with file.open("wb") as made:
            os.posix_fallocate(made.fileno(), 0, 16 << 20)
        try:
            path = subprocess.run(
                ["losetup", "-f", "--show", file], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            return [absent("blockio_count_error", "requests", f"no loop device: {error}")]
        try:
            return [_count_error(path, BlockDevices())]
        finally:
            subprocess.run(["losetup", "-d", path], check=True)


def _count_error(path: str, devices: BlockDevices) -> Result:
    name = Path(path).name
    with closing(BpfIo(devices)) as source:
        before, kernel = source.snapshot(), read_diskstats()[name]
        _write(path)
        while devices.in_flight(name):
            time.sleep(0.01)
        expected = read_diskstats()[name].since(kernel).total
        after = source.snapshot()
    counted = after.devices[name].since(before.devices.get(name)).total
    lost = after.lost_by_device.get(name, 0) - before.lost_by_device.get(name, 0)
    of = f"of {expected} requests" + (f", {lost} of them told as lost" if lost else "")
    return _result("blockio_count_error", abs(expected - counted - lost), of, "/proc/diskstats", bar=0)


def _write(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        buffer = mmap.mmap(-1, 16384)
        for i in range(_REQUESTS):
            os.pwritev(fd, [buffer], i % 1000 * 16384)
            if i % 100 == 0:
                os.fsync(fd)
    finally:
        os.close(fd)


def _off_cpu(seconds: float) -> Result:
    """Compare the counts of a child that sleeps and wakes with what passed, less its time on a CPU."""
    with _child(_SLEEPER) as child, closing(BpfSystem([child.pid], only_watched=True)) as source:
        before, on = source.snapshot(), _on_cpu(child.pid)
        _tell(child, str(max(1, int(seconds / 0.006))))
        after, on_after = source.snapshot(), _on_cpu(child.pid)
        known = before.threads.get(child.pid)  # absent as long as the child has not left a processor
        off = int(after.threads[child.pid].off_ns.sum() - (0 if known is None else known.off_ns.sum()))
    truth = after.monotonic_ns - before.monotonic_ns - (on_after - on)
    return _result("offcpu_error", abs(off - truth) / truth, "share", "/proc/PID/schedstat", bar=0.02)


def _cost(seconds: float) -> tuple[float, int, int]:
    """Return the cost of both collectors in percent of a core, lost events, and runs of their programs. One line in 5 s each."""
    with closing(IoMeter("bpf", cost=True)) as io, closing(SystemMeter("bpf", cost=True)) as system:
        lines: list[tuple[IoLine, SystemLine]] = []
        begin = time.monotonic()
        while not lines or time.monotonic() - begin < seconds:
            time.sleep(min(5.0, seconds))
            lines.append((io.measure(), system.measure()))
    costs = [(one.cost, other.cost) for one, other in lines]
    # both see the CPU time of this one process, so it counts once
    percent = [a.cpu_percent + (b.kernel_percent or 0.0) for a, b in costs if a and b]
    runs = sum(p.runs for pair in costs for cost in pair if cost for p in cost.programs.values())
    return sum(percent) / len(percent), sum(a.lost_events + b.lost_events for a, b in lines), runs


@contextmanager
def _child(code: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            os.killpg(child.pid, 9)


def _tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    child.stdout.readline()


def _on_cpu(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _result(name: str, value: float, unit: str, baseline: str, *, bar: float | None = None) -> Result:
    """Make a result of which less is better."""
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": 1, "min": value, "max": value, "bar": bar,
        "ok": bar is None or value <= bar,
    }  # fmt: skip
