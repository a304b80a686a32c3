"""What is measured where rights, types, namespaces or tools are missing, and what is said about it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.metrics.machine import loop_device, need_programs
from support.waiting import can_unshare, until

from actscope.errors import MetricsError
from actscope.metrics.meters import IoMeter, SystemMeter
from actscope.metrics.reader import read_measurements
from actscope.metrics.settings import WaitSettings
from actscope.metrics.sources.perfio import LatencyMatcher

COMMAND = [sys.executable, "-m", "actscope", "metrics"]
ONCE = ["--interval", "0.2", "--count", "1", "--no-output", "--json"]
NOBODY = 65534
TESTS = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_without_root_proc_is_read_and_the_command_that_gives_the_rest_is_named() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, which it gives up by setpriv")
    rights = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    for which in ("io", "system"):
        said = run(*rights, *COMMAND, which, *ONCE)
        assert said.returncode == 0, said.stderr
        line = json.loads(said.stdout)
        assert line["source"] == "proc"
        assert f"sudo actscope metrics {which}" in line["missing"][0]
        assert f"sudo actscope metrics {which}" in said.stderr


TYPES_HIDDEN = "mount -t tmpfs none /sys/kernel/btf"
TRACEFS_HIDDEN = "mount -t tmpfs none /sys/kernel/debug; mount -t tmpfs none /sys/kernel/tracing"
TRACEFS = "mount -t tracefs tracefs /sys/kernel/tracing"


def hiding(hidden: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `actscope metrics io` in a mount namespace in which something is hidden."""
    shell = " ".join([*COMMAND, "io", *ONCE, *arguments])
    return run("unshare", "--mount", "sh", "-c", f"{hidden} && {shell}")


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (f"{TRACEFS_HIDDEN}; {TYPES_HIDDEN}", "kernel's type information"),
        ("mount -t tmpfs none /sys", "kernel's type information"),
    ],
)
def test_with_types_and_tracefs_hidden_proc_is_read_and_the_reason_is_said(hidden: str, words: str) -> None:
    need_programs()
    if not can_unshare("--mount"):
        pytest.skip("needs a mount namespace of its own")
    said = hiding(hidden)
    assert said.returncode == 0, said.stderr
    line = json.loads(said.stdout)
    assert (line["source"], words in line["missing"][0]) == ("proc", True)
    said = hiding(hidden, "--source bpf")
    assert said.returncode == 2
    assert words in said.stderr
    said = hiding(hidden, "--source perf")
    assert said.returncode == 2
    assert "mount -t tracefs" in said.stderr
    assert "Traceback" not in said.stderr


def test_with_types_hidden_tracepoints_are_read_through_perf() -> None:
    """The second rung of the ladder. What it lacks is said, with the reason why it is not the first."""
    need_tracefs()
    said = hiding(f"{TYPES_HIDDEN} && {TRACEFS}")
    assert said.returncode == 0, said.stderr
    line = json.loads(said.stdout)
    assert line["source"] == "perf"
    assert "latencies of flushes" in line["missing"][0] and "kernel's type information" in line["missing"][0]
    assert "actscope metrics system" in run(*COMMAND, "system", *ONCE, "--source", "perf").stderr


def need_tracefs() -> None:
    if os.geteuid() != 0 or not can_unshare("--mount"):
        pytest.skip("needs root, and a mount namespace of its own for tracefs")
    if "tracefs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no tracefs")


def test_latencies_of_perf_are_those_of_the_requests_that_the_kernel_counts(tmp_path: Path) -> None:
    """Reads and writes on a loop device: each is in the histogram once, and the counts are those of /proc/diskstats."""
    need_tracefs()
    with loop_device(tmp_path) as loop:
        code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support.metrics.perf import count; count({loop.name!r})"
        said = run("unshare", "--mount", "sh", "-c", f'{TRACEFS} && "$0" -c "$1"', sys.executable, code)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    if found["lost"]:
        pytest.skip(f"perf says that it lost {found['lost']} events on this busy machine")
    assert found["operations"]["write"] == 300 and found["operations"]["read"] == 100
    assert found["in_histogram"] == 400 == found["kernel"]
    assert found["source"] == "perf"


def test_issues_and_completions_are_paired_whatever_comes_between() -> None:
    """A requeue, a completion in parts, a request of the same sector on another disk, and an end without a beginning."""
    matcher = LatencyMatcher()
    matcher.issue(1_000, 7, 64, 16)
    matcher.issue(5_000, 7, 64, 16)  # after a requeue
    matcher.issue(2_000, 8, 64, 16)
    matcher.complete(9_000, 7, 64, 4)
    matcher.complete(33_000, 7, 68, 12)
    matcher.complete(3_100, 8, 64, 16)
    matcher.complete(3_100, 8, 999, 8)
    matcher.issue(1, 7, 0, 0)
    matcher.complete(2, 7, 0, 0)
    assert {device: np.flatnonzero(slots).tolist() for device, slots in matcher.slots.items()} == {7: [5], 8: [0]}
    assert (matcher.unmatched, matcher.forgotten) == (1, 0)


def test_in_another_pid_namespace_processes_are_read_from_proc() -> None:
    """The programs would count under numbers that mean nothing there."""
    need_programs()
    if not can_unshare("--pid"):
        pytest.skip("needs a PID namespace of its own")
    said = run("unshare", "--pid", "--fork", "--mount-proc", *COMMAND, "system", *ONCE)
    assert said.returncode == 0, said.stderr
    line = json.loads(said.stdout)
    assert line["source"] == "proc"
    assert "PID namespace" in line["missing"][0]


def test_without_libbpf_the_package_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from actscope.metrics.bpf import libbpf as module

    need_programs()
    module.libbpf.cache_clear()
    monkeypatch.setattr(module, "LIBRARY", "libbpf-none.so.9")
    try:
        with pytest.raises(MetricsError, match="apt-get install libbpf1"):
            IoMeter("bpf")
        meter = IoMeter()
        assert (meter.measure().source, "libbpf1" in meter.missing[0]) == ("proc", True)
        meter.close()
    finally:
        module.libbpf.cache_clear()


def test_a_process_that_does_not_exist_is_refused() -> None:
    with pytest.raises(MetricsError, match="no such process"):
        SystemMeter("proc", WaitSettings(pid=(4_000_000,)))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_collector_that_ends_leaves_whole_lines_and_nothing_in_the_kernel(
    tmp_path: Path, how: signal.Signals
) -> None:
    need_programs()
    file = tmp_path / "tracepoints.jsonl"
    command = [*COMMAND, "io", "--interval", "0.05", "--flush-every", "1", "--source", "bpf"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: file.exists() and file.read_bytes().count(b"\n") > 2, 90, what="lines")
            held = _held(process.pid)
            assert held
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    found = read_measurements(file)
    assert not found.skipped
    assert file.read_bytes().endswith(b"\n")
    if how != signal.SIGKILL:
        assert process.returncode == 0
        assert f"{len(found.io)} lines" in said
    if shutil.which("bpftool"):
        until(lambda: not held & _loaded(), 20, what="the kernel to forget the programs")


def _held(pid: int) -> set[str]:
    """Return the ids of the programs that a process has loaded."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        text = path.read_text()
        found |= {line.split()[1] for line in text.splitlines() if line.startswith("prog_id")}
    return found


def _loaded() -> set[str]:
    listed = run("bpftool", "--json", "prog", "show").stdout
    return {str(one["id"]) for one in json.loads(listed)}


def test_intervals_do_not_drift(tmp_path: Path) -> None:
    """The end of each is a multiple after the start, and each line has the time that really passed."""
    begin = time.monotonic()
    said = run(
        *COMMAND,
        "io",
        "--source",
        "proc",
        "--interval",
        "0.2",
        "--count",
        "5",
        "--output",
        str(tmp_path / "o"),
        "--json",
    )
    assert said.returncode == 0, said.stderr
    assert time.monotonic() - begin >= 1.0
    lines = read_measurements(tmp_path / "o").io
    assert [json.loads(one)["timestamp"] for one in said.stdout.splitlines()] == [one.timestamp for one in lines]
    for before, after in pairwise(lines):
        assert after.interval_s == pytest.approx((after.monotonic_ns - before.monotonic_ns) / 1e9)


def test_the_collector_measures_its_own_cost() -> None:
    need_programs()
    meter = IoMeter("bpf", cost=True)
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={os.devnull}", "bs=1", "count=1"], capture_output=True, check=True)
        cost = meter.measure().cost
    finally:
        meter.close()
    assert cost is not None
    assert cost.kernel_percent is not None
    assert cost.cpu_percent == pytest.approx(cost.process_percent + cost.kernel_percent, abs=0.001)
    assert cost.memory_mb > 5
