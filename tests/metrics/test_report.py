"""The report adds up to what its files and its recording have, is one file, and says what is missing."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.metrics.timelines import MS, timeline
from support.recordings.made import frames_of, step_of
from typer.testing import CliRunner

import actscope
from actscope.cli.app import app
from actscope.clock import clock_pair, monotonic_ns
from actscope.metrics.lines import (
    DeviceInflight,
    DeviceLatency,
    IoLine,
    LatencyBucket,
    Pressure,
    ProcessWaits,
    SystemLine,
)
from actscope.metrics.reader import MeasurementFile, as_json
from actscope.metrics.report.page import report_html
from actscope.metrics.report.series import UNNAMED, device_series, system_series
from actscope.metrics.report.timeline import clock_of, recording_series
from actscope.metrics.report.tokens import token_series
from actscope.metrics.timeline.answer import AnsweredTimeline
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

DATA = Path(__file__).parents[1] / "data"
SITES = ("layers.0.resid_post", "layers.1.resid_post")
EVIL = "<script>alert(1)</script>"


def io_line(at: float, name: str = "vda", counts: dict[int, int] | None = None, **more: object) -> IoLine:
    buckets = [LatencyBucket(slot, n, 1 << slot, (2 << slot) - 1) for slot, n in (counts or {}).items()]
    latency = DeviceLatency(name, sum((counts or {}).values()), buckets)
    line = IoLine(at, 1.0, [latency], inflight=[DeviceInflight(name, 2)])
    for field, value in more.items():
        line = msgspec_replace(line, field, value)
    return line


def msgspec_replace(line: IoLine, field: str, value: object) -> IoLine:
    import msgspec

    return msgspec.structs.replace(line, **{field: value})


def system_line(at: float, name: str = "python") -> SystemLine:
    waits = ProcessWaits(name, {"runnable": 500_000_000, "sleep": 9_000_000_000, "io": 0})
    pressure: dict[str, object] = {"io": {"some": Pressure(12.5, 0, 0, 0)}, "cpu": "some avg10=3.25 avg60=0.0"}
    return SystemLine(at, 2.0, {"42": 9_500_000_000}, page_faults={"42": 8}, pressure=pressure, processes={"42": waits})


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Forty tokens, written now."""
    recorder = Recorder.create(tmp_path / "run.acts", RecordingSpec(SITES))
    for number in range(1, 11):
        step = step_of(number, [("r", 4 * number, 4)], time_ns=monotonic_ns())
        recorder.write(step, frames_of(step, SITES))
        recorder.flush()
    recorder.close()
    return actscope.open(tmp_path / "run.acts")


class Links(HTMLParser):
    """Everything in a page that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_devices_add_up_to_their_lines() -> None:
    lines = [io_line(1, counts={5: 98, 9: 1}), io_line(2, "vdb", {3: 1}), io_line(3, counts={5: 1})]
    vda, vdb = device_series(lines, lambda line: line.timestamp)
    assert (vda.name, vdb.name, vda.counts.sum(), vda.requests.tolist()) == ("vda", "vdb", 100, [99, 0, 1])
    assert (vda.counts[:, 5].tolist(), vda.counts[:, 9].tolist()) == ([98, 0, 1], [1, 0, 0])
    assert (vda.p50_us, vda.p99_us, vdb.p99_us) == (63, 63, 15)
    np.testing.assert_array_equal(vda.in_flight, [2, np.nan, 2])
    first, _ = device_series(lines, lambda line: line.timestamp, frozenset({"vdb"}))
    assert first.name == "vdb", "that under the recording comes first"


def test_processes_and_pressure_add_up_to_their_lines_also_to_those_of_older_tools() -> None:
    old = SystemLine(9.0, 1.0, {"7": 2_000_000_000}, page_faults={"7": 3})
    found = system_series([system_line(1), system_line(3), old], lambda line: line.timestamp)
    np.testing.assert_array_equal(found.pressure["io"], [12.5, 12.5, np.nan])
    np.testing.assert_array_equal(found.pressure["cpu"], [3.25, 3.25, np.nan])
    assert found.waits["python (42)"]["runnable"] == 1.0 and found.waits["7"] == {UNNAMED: 2.0}
    np.testing.assert_allclose(found.held["runnable"], [0.25, 0.25, 0])
    assert found.fault_totals == {"python (42)": 16, "7": 3}


def test_the_rates_of_a_recording_add_up_to_what_it_has(recording: Recording) -> None:
    series = recording_series(recording)
    seconds = np.diff(series.edges)
    history = recording.write_history()
    assert (series.tokens * seconds).sum() == pytest.approx(recording.n_rows)
    assert (series.written * seconds).sum() == pytest.approx(history.stored_bytes.sum())
    assert series.facts["tokens"] == "40" and series.facts["dropped rows"] == "0"


def test_a_line_of_the_recordings_boot_is_on_its_clock(recording: Recording) -> None:
    """Whatever the wall clock of the collector said. A line of another boot has its wall time."""
    clock, pair = clock_of(recording), clock_pair()
    ours = io_line(1.0, monotonic_ns=pair.monotonic_ns, boot_id=pair.boot_id)
    assert clock(ours) == pytest.approx(pair.wall_ns / 1e9, abs=0.05)
    assert clock(io_line(1.0, monotonic_ns=pair.monotonic_ns, boot_id="another")) == 1.0


def test_the_report_is_one_file_that_loads_nothing_in_both_themes(recording: Recording) -> None:
    """And no name in it becomes markup."""
    now = recording.write_history().times_ns[0] / 1e9
    file = MeasurementFile(
        Path(EVIL), [io_line(now + i / 9, EVIL, {4 + i: 3}) for i in range(5)], [system_line(now, EVIL)]
    )
    text = report_html(recording, [file])
    page = Links()
    page.feed(text)
    assert page.loads and all(one.startswith("data:image/svg+xml;base64,") for one in page.loads)
    assert page.tags.count("source") == page.tags.count("img") == 6
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    assert "Timeline" in text and "None of the measurements" not in text


def test_a_report_says_that_the_measurements_are_of_another_time(recording: Recording) -> None:
    text = report_html(recording, [MeasurementFile(Path("x"), [io_line(1.0)])])
    assert "None of the measurements was taken while the recording was written" in text


def test_lines_without_anything_make_a_report() -> None:
    """No device, no latencies, no process: what a collector without rights may write in an idle second."""
    lines = MeasurementFile(Path("x"), [IoLine(1.0, 1.0, []), io_line(2.0)], [SystemLine(1.0, 1.0, {})])
    assert "<h2>Processes</h2>" in report_html(None, [lines])


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["metrics", "report", *arguments])
    return (done.exit_code if done.exception is None or isinstance(done.exception, SystemExit) else 2), str(
        done.exception or ""
    ) + done.output


def test_the_command_reads_the_files_of_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that they were renamed to. The report is its owner's alone."""
    monkeypatch.chdir(tmp_path)
    code, said = run()
    assert code == 2 and "nothing to report" in said
    for name, at in (("tracepoints.jsonl.1", 1.0), ("tracepoints.jsonl", 2.0)):
        Path(name).write_text(as_json(io_line(at, counts={4: 1})) + "\n")
    Path("system_metrics.jsonl").write_text(as_json(system_line(1.0)) + "\n")
    code, said = run("--output", "out.html")
    assert (code, said) == (0, "out.html: 3 files of measurements\n")
    assert Path("out.html").stat().st_mode & 0o077 == 0
    assert re.search(r"tracepoints\.jsonl\.1</td><td class=n>1<", Path("out.html").read_text())
    code, said = run("--output", "no/such/out.html")
    assert code == 2 and "--output no/such/out.html: there is no directory" in said


def test_the_command_reports_a_recording_of_the_first_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "recording-0.1", "old.acts")
    code, _ = run("old.acts")
    assert code == 0
    assert "blocks without a time" in Path("report.html").read_text()


def answers() -> list[AnsweredTimeline]:
    """Two requests of a hundred tokens of 10 ms, of which one took 400 ms longer in its send buffer."""
    return [timeline(name, 100, slow=slow) for name, slow in (("one", 0), (EVIL, 77))]


def test_the_parts_of_tokens_add_up_to_their_gaps_and_the_slowest_has_its_sentence() -> None:
    found = token_series([*answers(), answers()[1]])
    assert found is not None
    assert (found.requests, len(found.gaps), found.together, found.median_ns) == (2, 200, 0, 10 * MS)
    np.testing.assert_array_equal(sum(found.parts.values()), found.gaps)
    assert found.parts["pass"].sum() == 200 * 5 * MS and found.parts["unexplained"].max() == 2 * MS
    assert list(found.parts) == ["scheduling", "pass", "delivery", "send_buffer", "unexplained"]
    first = found.slowest[0]
    assert (first.request, first.index, first.gap_ns, first.why) == (EVIL, 77, 410 * MS, "The client was slow.")
    assert [len(own) for _, own in found.groups()] == [100, 80, 18, 2]
    assert found.ends[0] == pytest.approx(answers()[0].clock.wall_ns / 1e9 + 0.01)
    assert token_series([]) is None


def test_the_report_has_a_section_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parts, the sentences and two plots in both themes. Texts of models become no markup."""
    monkeypatch.chdir(tmp_path)
    Path("why.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, answers())))
    code, said = run("--timeline", "why.jsonl")
    assert (code, said) == (0, "report.html: 0 files of measurements, 2 requests\n")
    text = Path("report.html").read_text()
    page = Links()
    page.feed(text)
    assert page.tags.count("source") == page.tags.count("img") == 2 and "script" not in page.tags
    assert "<h2>Tokens</h2>" in text and "The client was slow." in text and "the median gap is 10 ms" in text
    rows = re.findall(r"<tr><td>(\w+)</td><td>[^<]+</td><td class=n>([\d.]+) %</td>", text)
    assert [name for name, _ in rows] == ["scheduling", "pass", "delivery", "send_buffer", "unexplained"]
    assert sum(float(share) for _, share in rows) == pytest.approx(100, abs=0.3)
