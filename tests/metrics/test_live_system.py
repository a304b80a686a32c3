"""Waits and page faults of a child that we know, against the kernel's own counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import pytest
from support.metrics.machine import need_programs
from support.waiting import until

from actscope.metrics.meters import SystemMeter
from actscope.metrics.settings import WaitSettings
from actscope.metrics.sources.offcpu import BpfSystem
from actscope.metrics.sources.threads import CAUSES, ProcSystem, SystemSnapshot, SystemSource

#: A child that does each job that it is told, and says when it is done. It then waits for the next line.
CHILD = """
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None)
lock, held = threading.Lock(), threading.Lock()
page = mmap.PAGESIZE
def touch(pages):
    area = mmap.mmap(-1, pages * page)
    area.madvise(15)  # MADV_NOHUGEPAGE
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    ctypes.memset(address, 1, pages * page)
    areas.append(area)
areas = []
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
def holder(seconds):
    with held:
        time.sleep(seconds)
def blocked(seconds):
    thread = threading.Thread(target=holder, args=(seconds,)); thread.start()
    while not held.locked(): pass
    with held: pass
    thread.join()
def page_in(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, 4)  # DONTNEED
    area = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    area.madvise(1)  # RANDOM: no read-ahead
    for i in range(0, len(area), 64 * page): area[i]
def write(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    buffer = mmap.mmap(-1, 1 << 20)
    for i in range(20): os.pwrite(fd, buffer, i << 20)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Child:
    """The child, and what it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.pid = process, process.pid

    def do(self, job: str) -> None:
        """Run a line of Python in the child, and return when it waits again."""
        self.begin(job)
        self.end()

    def begin(self, job: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"
        self.wait()

    def wait(self) -> None:
        """Return once the child waits for a line, so that its counts stand still."""
        until(
            lambda: "pipe_read" in Path(f"/proc/{self.pid}/wchan").read_text() or self._state() == "S",
            what="a waiting child",
        )

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def schedstat(self) -> tuple[int, int]:
        """ns on a CPU and ns that it could run but did not, of the main thread."""
        on, delay, _ = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()
        return int(on), int(delay)

    def minor_faults(self) -> int:
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[7])


@contextmanager
def child() -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        one = Child(process)
        one.wait()
        try:
            yield one
        finally:
            process.kill()


@pytest.fixture
def told() -> Iterator[Child]:
    need_programs()
    with child() as one:
        yield one


@pytest.fixture
def source(told: Child) -> Iterator[BpfSystem]:
    made = BpfSystem([told.pid], only_watched=True)
    yield made
    made.close()


def spent(before: SystemSnapshot, after: SystemSnapshot, tid: int) -> dict[str, int]:
    """Return the ns of a thread off the CPU by cause."""
    old = before.threads[tid].off_ns if tid in before.threads else 0
    return dict(zip(CAUSES, (after.threads[tid].off_ns - old).tolist(), strict=False))


def test_page_faults_are_minflt(told: Child, source: BpfSystem) -> None:
    """A child that touches 1,000 fresh pages has as many faults as the kernel counts, and at least those."""
    before, minor = source.snapshot(), told.minor_faults()
    told.do("touch(1000)")
    after = source.snapshot()
    faults = after.threads[told.pid].faults - before.threads[told.pid].faults
    assert faults == told.minor_faults() - minor
    assert faults >= 1000


def test_off_cpu_time_is_that_of_schedstat(told: Child, source: BpfSystem) -> None:
    """What passed, less the time on a CPU, within 2 %; `runnable` is the run delay, within 2 % of what passed."""
    before, (on, delay) = source.snapshot(), told.schedstat()
    told.do("[(spin(0.01), time.sleep(0.02)) for _ in range(30)]")
    after, (on_after, delay_after) = source.snapshot(), told.schedstat()
    wall = after.monotonic_ns - before.monotonic_ns
    off = spent(before, after, told.pid)
    assert sum(off.values()) == pytest.approx(wall - (on_after - on), rel=0.02)
    assert off["runnable"] == pytest.approx(delay_after - delay, abs=0.02 * wall)
    assert off["sleep"] >= 0.6e9


@pytest.mark.parametrize(
    ("job", "cause", "least_ms"),
    [
        ("time.sleep(0.3)", "sleep", 290),
        ("blocked(0.3)", "lock", 250),
        ("write('{path}')", "io", 1),
        ("page_in('{path}')", "fault", 1),
    ],
)
def test_a_wait_has_its_cause(
    told: Child, source: BpfSystem, tmp_path: Path, job: str, cause: str, least_ms: float
) -> None:
    path = tmp_path / "data"
    if "page_in" in job:
        path.write_bytes(os.urandom(32 << 20))
        os.sync()
    before = source.snapshot()
    told.do(job.format(path=path))
    off = spent(before, source.snapshot(), told.pid)
    del off["wait"]  # for the next line
    assert off[cause] >= least_ms * 1e6, off
    assert cause in ("io", "fault") or max(off, key=lambda one: off[one] if one != "runnable" else 0) == cause, off


def test_a_stopped_process_is_stopped(told: Child, source: BpfSystem) -> None:
    before = source.snapshot()
    told.begin("spin(0.2)")
    os.kill(told.pid, signal.SIGSTOP)
    until(lambda: told._state() == "T", what="a stopped child")
    begin = time.monotonic()
    time.sleep(0.1)  # the length of the stop is what is measured
    lasted = time.monotonic() - begin
    os.kill(told.pid, signal.SIGCONT)
    told.end()
    assert spent(before, source.snapshot(), told.pid)["stopped"] >= lasted * 1e9


def test_the_waker_of_a_thread_is_named(told: Child, source: BpfSystem) -> None:
    """The child's main thread is woken by us, who write its line, and by no interrupt."""
    told.do("pass")
    wakers = {waker: wake for (tid, waker), wake in source.snapshot().wakes.items() if tid == told.pid}
    assert os.getpid() in {wake.pid for wake in wakers.values()}


def test_a_wait_that_has_not_ended_is_in_the_counts(told: Child, source: BpfSystem) -> None:
    """A thread that began to wait before the programs were attached, and still does, waits in every snapshot."""
    before = source.snapshot()
    after = until(
        lambda: one if (one := source.snapshot()).monotonic_ns - before.monotonic_ns > 50_000_000 else None,
        what="50 ms",
    )
    assert spent(before, after, told.pid)["wait"] == after.monotonic_ns - before.monotonic_ns


def test_only_the_processes_asked_for_are_counted(told: Child, source: BpfSystem) -> None:
    told.do("touch(10)")
    assert {one.pid for one in source.snapshot().threads.values()} == {told.pid}


def test_threads_that_have_ended_are_forgotten_after_one_snapshot(told: Child, source: BpfSystem) -> None:
    told.do("[t.start() or t.join() for t in [threading.Thread(target=spin, args=(0.001,)) for _ in range(20)]]")
    assert len(source.snapshot().threads) == 21
    until(lambda: len(source.snapshot().threads) == 1, 10, what="the ends of all of them")


def test_long_waits_have_their_kernel_stack(told: Child) -> None:
    from actscope.metrics.meters import SystemMeter

    meter = SystemMeter("bpf", WaitSettings(pid=(told.pid,), stacks_over=50))
    try:
        told.do("time.sleep(0.01), time.sleep(0.2)")
        line = meter.measure()
    finally:
        meter.close()
    (stack,) = [one for one in line.processes[str(told.pid)].stacks if one.cause == "sleep"]
    assert stack.count == 1
    assert stack.waited_ns >= 190_000_000
    assert "hrtimer_nanosleep" in stack.frames or stack.frames[0].startswith("0x")


def test_without_programs_off_cpu_time_and_faults_are_still_right(told: Child) -> None:
    source: SystemSource = ProcSystem([told.pid])
    before, minor, (on, _) = source.snapshot(), told.minor_faults(), told.schedstat()
    told.do("touch(100), spin(0.05), time.sleep(0.3)")
    after, (on_after, _) = source.snapshot(), told.schedstat()
    one, old = after.threads[told.pid], before.threads[told.pid]
    assert one.faults - old.faults == told.minor_faults() - minor
    wall = after.monotonic_ns - before.monotonic_ns
    assert int((one.off_ns - old.off_ns).sum()) == pytest.approx(wall - (on_after - on), rel=0.02)


@pytest.mark.parametrize("source", ["bpf", "proc"])
def test_time_on_a_cpu_is_that_of_schedstat(source: Literal["bpf", "proc"]) -> None:
    """Of a child that computes and sleeps by turns, so that it leaves its CPU often."""
    if source == "bpf":
        need_programs()
    code = (
        "from time import *\nwhile True:\n end = thread_time() + 0.004\n while thread_time() < end: pass\n sleep(0.001)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", code]) as child:
        try:
            stat = Path(f"/proc/{child.pid}/schedstat")
            until(lambda: int(stat.read_text().split()[0]) > 20_000_000, what="a child that computes")
            with closing(SystemMeter(source, WaitSettings(pid=(child.pid,)))) as meter:
                time.sleep(0.3)
                meter.measure()
                before = int(stat.read_text().split()[0])
                time.sleep(1)
                line = meter.measure()
                ran = int(stat.read_text().split()[0]) - before
        finally:
            child.kill()
    process = line.processes[str(child.pid)]
    assert process.on_cpu_ns == process.threads[str(child.pid)].on_cpu_ns == pytest.approx(ran, rel=0.1, abs=20_000_000)
