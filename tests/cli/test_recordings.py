"""The commands that look at recordings: what they print, what they write, and how they exit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from support.recordings.made import frames_of, step_of
from support.recordings.real_model import record, run_model
from typer.testing import CliRunner

from actscope.cli import analyze, export, import_, info, recover, verify
from actscope.errors import RecordingError, SettingsError
from actscope.frames import RowFlag
from actscope.probes import Probe, ProbeInfo, save_probe
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.resid_post")
app = typer.Typer(rich_markup_mode=None)
COMMANDS: dict[str, Callable[..., None]] = {
    "info": info.info,
    "verify": verify.verify,
    "recover": recover.recover,
    "export": export.export,
    "import": import_.import_,
    "analyze": analyze.analyze,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def run(*arguments: object, code: int = 0) -> str:
    """Standard output of a command that exits with `code`; what is raised beyond typer is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def run_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(run_model(dtype=torch.bfloat16), tmp_path_factory.mktemp("rec") / "run.acts")


@pytest.fixture
def real(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(whole, tmp_path / "run.acts")


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """What a writer that died would leave: a copy of the files while it wrote, after a sync and some more."""
    options = PipelineOptions(block_bytes=1 << 10, flush_seconds=0.05)
    with Recorder.create(tmp_path / "alive", RecordingSpec(SITES, codec="zstd"), options) as recorder:
        for number in range(1, 6):
            step = step_of(number, [(f"r{number}", 0, 20)])
            recorder.write(step, frames_of(step, SITES))
        recorder.sync()
        shutil.copytree(tmp_path / "alive", tmp_path / "crashed")
    return tmp_path / "crashed"


def flip(path: Path) -> None:
    """Change one byte in the body of the last block of rows."""
    recording = Recording.open(path)
    entry = recording[recording.sites[0]].blocks.entries[-1]
    (segment,) = path.glob("*.mcap")
    with segment.open("r+b") as file:
        at = int(entry["offset"]) + 200
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_info_says_what_a_recording_is(real: Path) -> None:
    found = run_json("info", real)
    recording = Recording.open(real)
    assert (found["rows"], found["n_requests"], len(found["requests"])) == (310, 3, 3)
    assert found["model"]["name"] == "tiny/llama" and found["complete"] and found["sessions"] == 1
    assert found["tokens"] == {"computed": 310, "present": 313, "coverage": 310 / 313}
    site = found["sites"]["layers.2.resid_post"]
    assert (site["rows"], site["width"], site["dtype"]) == (310, 64, "bfloat16")
    assert site["codecs_used"] == {"shuffle_zstd": 310}
    assert (
        site["ratio_fp32"]
        == pytest.approx(2 * site["ratio_source"])
        == recording["layers.2.resid_post"].sizes().ratio_fp32
    )
    assert site["error"] == {"mean": 0, "p999": 0, "worst": 0, "rows": 310}
    text = run("info", real, "--requests", "1")
    for said in ("tiny/llama", "310 of 313 positions", "layers.3.resid_post", "shuffle_zstd", "lossless", "and 2 more"):
        assert said in text


def test_info_shows_drops_marks_and_measured_errors(tmp_path: Path) -> None:
    spec = RecordingSpec(SITES, codecs={SITES[0]: "error_bounded:1e-2"}, codec="none")
    with Recorder.create(tmp_path / "rec", spec) as recorder:
        step = step_of(1, [("r", 0, 50)])
        recorder.write(step, frames_of(step, SITES))
        recorder.mark("r", "the wolf")
    found = run_json("info", tmp_path / "rec")
    assert 0 < found["sites"][SITES[0]]["error"]["worst"] <= 1e-2 and not found["sites"][SITES[1]]["error"]["worst"]
    assert [(mark["request"], mark["why"]) for mark in found["marks"]] == [("r", "the wolf")]
    assert "r: the wolf" in run("info", tmp_path / "rec")


def test_info_counts_rows_after_the_end_of_an_answer(tmp_path: Path) -> None:
    step = step_of(1, [("r", 0, 6)])
    step.meta["flags"][4:] = RowFlag.AFTER_EOS
    with Recorder.create(tmp_path / "rec", RecordingSpec(SITES)) as recorder:
        recorder.write(step, frames_of(step, SITES))
    found = run_json("info", tmp_path / "rec")
    assert (found["rows"], found["rows_after_end"]) == (6, 2)
    assert found["tokens"] == {"computed": 4, "present": 4, "coverage": 1.0}
    assert "2 after a request's end" in run("info", tmp_path / "rec")


def test_info_refuses_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(RecordingError):
        run("info", tmp_path)


def test_verify_passes_a_whole_recording_and_counts_everything(real: Path) -> None:
    found = run_json("verify", real)
    assert found["ok"] and not found["problems"] and not found["damage"]
    assert (found["rows"], found["labels"], found["unlabelled"], found["absent"]) == (1240, 310, 0, {})
    assert "ok" in run("verify", real)


def test_verify_names_the_block_that_a_flipped_bit_has_hit(real: Path) -> None:
    flip(real)
    found = run_json("verify", real, code=1)
    assert not found["ok"]
    assert any(damage["acknowledged"] and damage["kind"] == "corrupt" for damage in found["damage"])
    assert any("layers.0.resid_post, block" in problem for problem in found["problems"])
    assert "DAMAGED" in run("verify", real, code=1)


def test_verify_finds_flips_at_every_place_of_a_segment(crashed: Path, tmp_path: Path) -> None:
    """After `recover`, which closes it; the zeros that a segment was made longer by have gone then."""
    run("recover", crashed)
    (segment,) = crashed.glob("*.mcap")
    raw = segment.read_bytes()
    for at in range(0, len(raw), max(1, len(raw) // 40)):
        segment.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        found = run_json("verify", crashed, code=run_code("verify", crashed))
        assert found["damage"] or found["problems"], at
    segment.write_bytes(raw)
    assert run_json("verify", crashed)["ok"]


def run_code(*arguments: object) -> int:
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code


def test_verify_counts_rows_without_labels_and_labels_without_rows_and_calls_neither_damage(tmp_path: Path) -> None:
    with Recorder.create(tmp_path / "rec", RecordingSpec(SITES, codec="none")) as recorder:
        for number in range(1, 4):
            step = step_of(number, [("r", 5 * number, 5)])
            recorder.begin(step)
            for frame in frames_of(step, SITES[: 1 if number == 2 else 2]):
                recorder.put(step, frame.site, frame.rows)
            recorder.end(step, complete=number != 3)
    found = run_json("verify", tmp_path / "rec")
    assert found["ok"]
    assert (found["labels"], found["unlabelled"], found["absent"]) == (10, 5, {SITES[1]: 5})


def test_a_crashed_recording_is_reported_then_recovered_and_then_whole(crashed: Path) -> None:
    assert not run_json("info", crashed)["complete"]
    assert run_json("verify", crashed)["ok"]
    before = Recording.open(crashed).labels()
    first = run_json("recover", crashed)
    assert first["ok"] and first["changed"]
    again = run_json("recover", crashed)
    assert again["ok"] and not again["changed"]
    assert "nothing changed" in run("recover", crashed)
    np.testing.assert_array_equal(Recording.open(crashed).labels(), before)
    assert run_json("verify", crashed)["ok"]


def test_recover_refuses_damage_unless_it_is_to_salvage(real: Path) -> None:
    flip(real)
    files = {path.name: path.read_bytes() for path in real.iterdir()}
    refused = run_json("recover", real, code=1)
    assert not refused["ok"] and refused["error"]
    assert {path.name: path.read_bytes() for path in real.iterdir()} == files
    saved = run_json("recover", real, "--salvage")
    assert saved["ok"] and saved["changed"] and saved["lost"] and saved["kept"]
    rest = Recording.open(real)
    assert len(rest["layers.0.resid_post"]) < len(rest["layers.1.resid_post"]) == 310


def test_export_and_import_are_one_round(real: Path, tmp_path: Path) -> None:
    said = run_json(
        "export", real, "--to", tmp_path / "p", "--format", "packets", "--sites", "first,last", "--positions", ":10"
    )
    assert said["rows"] == {"layers.0.resid_post": 30, "layers.3.resid_post": 30}
    back = run_json("import", tmp_path / "p", "--to", tmp_path / "back", "--codec", "zstd")
    assert (back["rows"], back["requests"], back["ours"]) == (30, 3, True)
    one, other = Recording.open(real), Recording.open(tmp_path / "back")
    np.testing.assert_array_equal(
        other.rows("layers.3.resid_post", "story").values, one.rows("layers.3.resid_post", "story", slice(0, 10)).values
    )
    assert "30 rows of 3 requests at 2 sites" in run(
        "import", tmp_path / "p", "--to", tmp_path / "b2", "--codec", "zstd"
    )


def test_export_replaces_an_export_only_with_force(real: Path, tmp_path: Path) -> None:
    assert "as npy (float32)" in run("export", real, "--to", tmp_path / "x", "--format", "npy")
    with pytest.raises(RecordingError, match="exists already"):
        run("export", real, "--to", tmp_path / "x", "--format", "npy")
    assert "as npy (uint16)" in run(
        "export", real, "--to", tmp_path / "x", "--format", "npy", "--bf16", "uint16", "--force"
    )


@pytest.mark.parametrize("text", ["5", "a:b", "1:2:3", "-1:4"])
def test_positions_are_a_range(text: str) -> None:
    with pytest.raises(SettingsError, match="expected a range such as 0:100"):
        export.read_positions(text)


def test_positions_may_be_open_at_either_side() -> None:
    assert [export.read_positions(t) for t in ("", "3:", ":7", "3:7")] == [
        None,
        slice(3, None),
        slice(0, 7),
        slice(3, 7),
    ]


def test_analyze_prints_a_table_and_writes_a_report(real: Path, tmp_path: Path) -> None:
    rows = Recording.open(real)["layers.1.resid_post"][:]
    vector = rows.mean(axis=0)
    probe = Probe(ProbeInfo(id="mean", site="layers.1.resid_post", bias=-float(np.median(rows @ vector))), vector)
    save_probe(probe, tmp_path / "probes/mean.safetensors")
    arguments = (
        "analyze",
        real,
        "--sites",
        "0,1",
        "--features",
        tmp_path / "probes",
        "--to",
        tmp_path / "out",
        "--no-plots",
    )
    found = run_json(*arguments)
    assert [site["site"] for site in found["sites"]] == ["layers.0.resid_post", "layers.1.resid_post"]
    assert found["features"][0]["features"][0]["rate"] == pytest.approx(0.5, abs=0.05)
    assert json.loads((tmp_path / "out/report.json").read_text()) == found
    text = run(*arguments, "--graph")
    for said in ("effective rank", "layers.1.resid_post", "1 of 1 fire", "not causation"):
        assert said in text
