"""A trace for Perfetto, read back: slices nest, flows are closed, names are one line, and lengths are the timeline's."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.metrics.perfetto import ReadTrace, read_trace
from support.metrics.timelines import HERE, MS, timeline
from support.recordings.made import frames_of, step_of
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

import actscope
from actscope.cli.app import app
from actscope.clock import ClockPair, monotonic_ns
from actscope.errors import MetricsError
from actscope.metrics.lines import (
    DeviceInflight,
    DeviceLatency,
    IoLine,
    LatencyBucket,
    OperationTotals,
    Pressure,
    ProcessWaits,
    SystemLine,
    ThreadWaits,
)
from actscope.metrics.reader import MeasurementFile, as_json
from actscope.metrics.timeline.answer import AnsweredPart, read_timelines
from actscope.metrics.trace.assembled import TraceSources, make_trace
from actscope.metrics.trace.clocks import TraceClock
from actscope.metrics.trace.events import TraceEvent, TraceEvents
from actscope.metrics.trace.profiler import add_profile, read_profile
from actscope.metrics.trace.protobuf import encoded
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

EVIL = "a\nb\x1b[31m\u202e\ud800"
RUNNER = CliRunner()


def traced(**sources: object) -> ReadTrace:
    return read_trace(make_trace(TraceSources(**sources)).data)  # type: ignore[arg-type]


def test_requests_passes_tokens_and_scores_are_joined_and_have_the_timelines_lengths() -> None:
    """Two requests took part in the same passes, which are there once."""
    one, two = timeline("one"), timeline("two")
    found = traced(timelines=[one, two], scores={"one": {41: {"danger": 0.25, "joy": -1.5}}})
    assert [(s.start_ns, s.end_ns) for s in found.named("request")] == [
        (HERE.monotonic_ns, HERE.monotonic_ns + 40 * MS)
    ] * 2
    gaps = [s for s in found.named("gaps") if s.path[1] == "one"]
    assert [s.end_ns - s.start_ns for s in gaps if s.depth == 0] == [t.gap_ns for t in one.tokens]
    parts = [(s.name, s.start_ns, s.end_ns - s.start_ns) for s in gaps if s.depth == 1]
    assert parts == [(p.name, p.start_ns, p.ns) for t in one.tokens for p in t.parts]
    assert [s.shown["unexplained_ns"] for s in gaps if s.depth == 0] == [2 * MS] * 4
    passes = found.named("passes")
    assert [(s.name, s.end_ns - s.start_ns, s.shown["rows"]) for s in passes] == [
        (f"pass {100 + i}", 6 * MS, 9) for i in range(4)
    ]
    assert passes[0].path == ("engine a model", "passes")
    (scores,) = found.named("scores")
    assert scores.shown == {"danger": 0.25, "joy": -1.5}
    assert found.counters["requests", "one", "score of joy"] == [(one.tokens[1].end_ns, -1.5)]
    (flow,) = scores.ended_flows
    assert [s.path[-1] for s in found.joined(flow)] == ["passes", "tokens", "scores"]
    first = next(s for s in found.named("tokens") if s.shown["index"] == 0 and s.path[1] == "one")
    assert [s.path[-1] for s in found.joined(first.ended_flows[0])] == ["request", "passes", "tokens"]


def test_one_instant_is_told_on_all_clocks() -> None:
    found = traced(timelines=[timeline("one")])
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    assert found.clocks[3] == HERE.monotonic_ns and found.clocks[1] == HERE.wall_ns
    assert found.clocks[6] - found.clocks[3] == pytest.approx(suspended, abs=2 * MS)
    other = traced(timelines=[timeline("one", boot="another boot")])
    assert set(other.clocks) == {1, 3}  # how long another machine was suspended is not known


def test_passes_that_overlap_are_on_lanes() -> None:
    """With async scheduling a pass begins before the one before it is over."""
    late = timeline("one")
    tokens = [
        msgspec.structs.replace(t, passes=[msgspec.structs.replace(p, ns=12 * MS) for p in t.passes])
        for t in late.tokens
    ]
    found = traced(timelines=[msgspec.structs.replace(late, tokens=tokens)])
    assert [s.name for s in found.named("passes")] == ["pass 100", "pass 102"]
    assert [s.name for s in found.named("passes 2")] == ["pass 101", "pass 103"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=25), st.randoms())
def test_any_slices_nest_on_their_lanes_and_any_flow_is_closed(
    spans: list[tuple[int, int]], chance: random.Random
) -> None:
    events = TraceEvents()
    made = [TraceEvent(0, start, start + length, f"{i}") for i, (start, length) in enumerate(spans)]
    events.lanes("lane", 0, made)
    for _ in range(8):
        some = sorted(chance.sample(made, min(3, len(made))), key=lambda one: one.start_ns)
        if len(some) > 1:
            events.flow(*some)
    found = read_trace(encoded(events, TraceClock(HERE, None)))
    assert sorted((s.start_ns, s.end_ns - s.start_ns) for s in found.slices) == sorted(spans)


def test_names_of_clients_and_files_are_one_line_of_bounded_length() -> None:
    evil = msgspec.structs.replace(timeline("x"), request=EVIL, model=EVIL * 99, state=EVIL)
    evil = msgspec.structs.replace(evil, tokens=[msgspec.structs.replace(evil.tokens[0], text=EVIL, why=EVIL)])
    waits = ProcessWaits(EVIL, {}, {"7": ThreadWaits(EVIL, {"io": 200 * MS})}, found_as=EVIL)
    lines = [SystemLine(1.0, 0.5, {}, processes={"7": waits}, monotonic_ns=HERE.monotonic_ns + 9, boot_id=HERE.boot_id)]
    io = [
        IoLine(1.0, 0.5, [DeviceLatency(EVIL, 3, [], label=EVIL)], monotonic_ns=HERE.monotonic_ns, boot_id=HERE.boot_id)
    ]
    found = traced(timelines=[evil], files=[MeasurementFile(Path("f"), io, lines)], scores={EVIL: {40: {EVIL: 1.0}}})
    names = {name for one in found.slices for name in (*one.path, one.name)} | {
        n for path in found.counters for n in path
    }
    shown = {str(value) for one in found.slices for value in (*one.shown, *one.shown.values())}
    assert all(len(name) <= 200 and "\n" not in name for name in names)
    assert not any(c in text for text in names | shown for c in "\x1b\u202e\ud800")
    assert r"a\u000ab\u001b[31m\u202e\ud800" in names


def test_what_the_kernel_saw_is_beside_the_requests_and_joined_to_the_slowest_token() -> None:
    request = timeline("one")
    slow = msgspec.structs.replace(request.tokens[3], gap_ns=90 * MS, unexplained_ns=82 * MS)
    request = msgspec.structs.replace(request, tokens=[*request.tokens[:3], slow])
    thread = ThreadWaits("actscope-model", {"io": 60 * MS, "lock": 10 * MS, "runnable": MS}, page_faults=5)
    idle = ThreadWaits("idle", {"lock": 100 * MS})
    other = ProcessWaits("sh", {}, {"9": ThreadWaits("sh", {"io": 90 * MS})})
    engine = ProcessWaits("python", {}, {"7": thread, "8": idle}, found_as="engine builtin")
    end = HERE.monotonic_ns + 100 * MS
    pressure: dict[str, object] = {"io": {"some": Pressure(12.5, 0, 0, 0)}}
    system = SystemLine(
        1.0, 0.1, {}, processes={"7": engine, "9": other}, pressure=pressure, monotonic_ns=end, boot_id=HERE.boot_id
    )
    device = DeviceLatency(
        "vda", 8, [LatencyBucket(13, 8, 8192, 16383)], operations={"write": OperationTotals(8, 4096, 9000.0)}
    )
    io = IoLine(1.0, 0.1, [device], inflight=[DeviceInflight("vda", 3)], monotonic_ns=end, boot_id=HERE.boot_id)
    strange = msgspec.structs.replace(system, boot_id="before")
    made = make_trace(TraceSources(timelines=[request], files=[MeasurementFile(Path("f"), [io], [system, strange])]))
    found = read_trace(made.data)
    (held,) = found.named("off the CPU")
    assert (held.name, held.end_ns - held.start_ns, held.end_ns) == ("io 60 ms, runnable 1 ms", 100 * MS, end)
    assert held.shown["lock_ns"] == 10 * MS and held.path[0] == "actscope-model"
    assert [s.name for s in found.joined(held.flows[0])] == ["io 60 ms, runnable 1 ms", "3  a"]
    (requests,) = found.named("vda")
    assert requests.name == "8 write, p99 at most 16,383 µs" and requests.shown["write.bytes"] == 4096
    assert found.counters["block devices", "vda", "in flight"] == [(end, 3)]
    assert found.counters["pressure (PSI, avg10)", "io"] == [(end, 12.5)]
    assert made.left_out == [
        "1 lines of measurements are of another boot, whose clock has nothing to do with this one's"
    ]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Forty tokens of one request in ten passes, and one pass of another."""
    recorder = Recorder.create(tmp_path / "run.acts", RecordingSpec(("layers.0.resid_post",)))
    for number in range(1, 11):
        step = step_of(number, [("r", 4 * number, 4)], time_ns=monotonic_ns())
        recorder.write(step, frames_of(step, ("layers.0.resid_post",)))
    step = step_of(11, [("other", 0, 2)], time_ns=monotonic_ns())
    recorder.write(step, frames_of(step, ("layers.0.resid_post",)))
    recorder.close()
    return actscope.open(tmp_path / "run.acts")


def test_a_recording_gives_its_requests_passes_and_tokens(recording: Recording) -> None:
    found = traced(recording=recording)
    assert len(found.named("tokens")) == recording.n_rows == 42
    assert [s.shown["rows"] for s in found.named("passes")] == [4] * 10 + [2]
    assert sorted(s.start_ns for s in found.named("tokens")) == sorted(recording.labels()["time_ns"].tolist())
    assert all(len(found.joined(s.ended_flows[0])) >= 2 for s in found.named("tokens"))
    assert len(traced(recording=recording, only=frozenset({"other"})).named("tokens")) == 2
    beside = traced(recording=recording, timelines=[timeline("r")])
    assert len([s for s in beside.named("tokens") if s.path[0] == "requests"]) == 4
    assert len([s for s in beside.named("tokens") if s.path[0] != "requests"]) == 2  # `r` is there with all its borders


def test_a_trace_of_torchs_profiler_is_put_on_the_clock(tmp_path: Path) -> None:
    """An operation lies between the clock's readings before and after it, to a few milliseconds."""
    layer, rows = torch.nn.Linear(64, 64), torch.randn(8, 64)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        before = monotonic_ns()
        layer(rows)
        after = monotonic_ns()
    file = tmp_path / "profile.json"
    profiler.export_chrome_trace(str(file))
    packed = tmp_path / "profile.json.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_profile(packed) == read_profile(file)
    found = traced(profiles=[read_profile(file)], timelines=[timeline("one")])
    (linear,) = [s for s in found.slices if s.name == "aten::linear"]
    assert linear.path[0] == "torch profiler" and before - 5 * MS < linear.start_ns < linear.end_ns < after + 5 * MS
    inner = [s for s in found.slices if s.name == "aten::addmm"]
    assert inner and all(s.depth > linear.depth and s.path == linear.path for s in inner)


def test_arrows_of_a_profile_are_kept_where_both_ends_are_there(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    rows = [
        {"ph": "M", "name": "process_name", "pid": "GPU", "tid": 0, "args": {"name": "cuda"}},
        {"ph": "X", "name": "launch", "pid": 1, "tid": 2, "ts": 10, "dur": 5, "args": {"grid": [1, 2], "big": 1 << 70}},
        {"ph": "X", "name": "kernel", "pid": "GPU", "tid": 7, "ts": 20, "dur": 5.5},
        {"ph": "s", "id": 4, "cat": "ac2g", "pid": 1, "tid": 2, "ts": 10},
        {"ph": "f", "id": 4, "cat": "ac2g", "pid": "GPU", "tid": 7, "ts": 20, "bp": "e"},
        {"ph": "s", "id": 5, "cat": "ac2g", "pid": 1, "tid": 2, "ts": 10},
    ]
    file.write_text(json.dumps({"traceEvents": rows, "baseTimeNanoseconds": HERE.wall_ns}))
    events = TraceEvents()
    assert add_profile(events, read_profile(file), TraceClock(HERE, None)) == 2
    found = read_trace(encoded(events, TraceClock(HERE, None)))
    launch, kernel = found.slices
    assert launch.flows == kernel.ended_flows == [1] and kernel.end_ns - kernel.start_ns == 5500
    assert kernel.path == ("torch profiler", "cuda (GPU)", "thread 7") and launch.shown["big"] == str(1 << 70)
    for text, words in (
        ("{}", "no trace of torch's profiler"),
        ('{"traceEvents": []}', "expected baseTimeNanoseconds"),
    ):
        file.write_text(text)
        with pytest.raises(MetricsError, match=words):
            read_profile(file)


def test_the_command_writes_a_trace_that_only_its_owner_reads(tmp_path: Path, recording: Recording) -> None:
    answers, lines, out = tmp_path / "why.jsonl", tmp_path / "system_metrics.jsonl", tmp_path / "trace.pftrace"
    answers.write_bytes(b"\n".join(msgspec.json.encode(timeline(name)) for name in ("one", "two")))
    lines.write_text(as_json(SystemLine(1.0, 0.5, {}, monotonic_ns=HERE.monotonic_ns, boot_id=HERE.boot_id)) + "\n")
    said = RUNNER.invoke(
        app,
        [
            *("metrics", "trace", str(recording.path), "--timeline", str(answers), "--request", "one"),
            *("--metrics", str(lines), "--output", str(out)),
        ],
    )
    assert said.exit_code == 0, said.output
    found = read_trace(out.read_bytes())
    assert out.stat().st_mode & 0o777 == 0o600
    assert {s.path[1] for s in found.named("tokens")} == {"one"}
    assert f"{out}: " in said.output and "ui.perfetto.dev" in said.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gap_ns": 11 * MS}, "parts that sum to its gap"),
        ({"parts": [AnsweredPart("magic", HERE.monotonic_ns, MS)]}, "parts named request"),
        ({"parts": [AnsweredPart("pass", HERE.monotonic_ns - 1, MS)]}, "parts that do not overlap"),
    ],
)
def test_a_timeline_that_does_not_add_up_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    found = timeline("one")
    broken = msgspec.structs.replace(found, tokens=[msgspec.structs.replace(found.tokens[0], **change)])
    file = tmp_path / "why.json"
    file.write_text(json.dumps(msgspec.to_builtins(broken), indent=1))
    with pytest.raises(MetricsError, match=words):
        read_timelines(file)
    file.write_text(json.dumps(msgspec.to_builtins(found), indent=1))
    assert read_timelines(file) == [found]


def test_without_anything_of_a_known_boot_there_is_no_trace() -> None:
    with pytest.raises(MetricsError, match="no clock to trace on"):
        make_trace(TraceSources(files=[MeasurementFile(Path("f"), [IoLine(1.0, 0.5, [])])]))
    said = RUNNER.invoke(app, ["metrics", "trace"])
    assert said.exit_code != 0 and "nothing to trace" in str(said.exception or said.output)


def test_the_clock_of_a_trace_converts_wall_time() -> None:
    clock = TraceClock(ClockPair(5_000, 1_000_000, "boot"), None)
    assert clock.monotonic_of(1_000_250) == 5_250
