"""What a command says when something is wrong: one message, where and what to do, and no traceback."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from support.recordings.made import frames_of, step_of
from typer.testing import CliRunner

from actscope import cli
from actscope.cli.app import app
from actscope.cli.common.progress import ProgressBar
from actscope.errors import ActscopeError, CodecError, ProbeError, RecordingError, SettingsError
from actscope.probes import load_probe
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITE = "layers.0.resid_post"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with Recorder.create(tmp_path / "run.acts", RecordingSpec((SITE,), codec="none")) as recorder:
        step = step_of(1, [("chatcmpl-0123456789abcdef0123456789abcdef", 0, 4)])
        recorder.write(step, frames_of(step, (SITE,)))
        recorder.mark("chatcmpl-0123456789abcdef0123456789abcdef", "the wolf")
    return tmp_path / "run.acts"


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of the command line itself."""
    monkeypatch.setattr(sys, "argv", ["actscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def refused(*arguments: object) -> BaseException:
    error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
    assert error is not None
    return error


@pytest.mark.parametrize("command", ["info", "verify", "recover", "analyze", "replay"])
def test_a_recording_that_is_not_there_is_one_message_and_exit_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, command, tmp_path / "nowhere") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"actscope: {tmp_path}/nowhere: there is no such directory")
    assert err.count("\n") == 1


def test_an_error_of_the_file_system_with_a_path_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        (tmp_path / "absent").read_bytes()

    monkeypatch.setattr("actscope.cli.app.app", fail)
    assert main(monkeypatch) == 2
    assert capsys.readouterr().err == f"actscope: {tmp_path}/absent: No such file or directory\n"


def test_a_package_that_is_missed_late_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'zstandard'", name="zstandard")

    monkeypatch.setattr("actscope.cli.app.app", fail)
    assert main(monkeypatch) == 2
    assert "pip install 'actscope[record]'" in capsys.readouterr().err


def test_a_module_of_our_own_that_is_missing_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'actscope.lost'", name="actscope.lost")

    monkeypatch.setattr("actscope.cli.app.app", fail)
    monkeypatch.setattr(sys, "argv", ["actscope"])
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_capture_refuses_a_bad_codec_before_anything_is_loaded_or_made(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello\n")
    error = refused("capture", "no/model", tmp_path / "p.txt", "--to", tmp_path / "run", "--codec", "svd:0")
    assert isinstance(error, CodecError) and not (tmp_path / "run").exists()


def test_capture_refuses_a_place_that_is_taken_before_the_model_is_loaded(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello\n")
    error = refused("capture", "no/model", tmp_path / "p.txt", "--to", recorded)
    assert isinstance(error, SettingsError) and "--resume" in str(error)
    error = refused("capture", "no/model", tmp_path / "p.txt", "--to", tmp_path / "p.txt")
    assert isinstance(error, SettingsError) and "is a file" in str(error)


def test_capture_does_not_run_prompts_that_the_sample_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello\n")
    error = refused("capture", "no/model", tmp_path / "p.txt", "--to", tmp_path / "run", "--sample", "0")
    assert isinstance(error, SettingsError) and "none of the prompts" in str(error)


@pytest.mark.parametrize("form", ["npy", "packets"])
def test_export_with_force_does_not_replace_a_file_that_is_no_export(recorded: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "thesis.txt").write_text("dear reader, this is what I have found")
    error = refused("export", recorded, "--to", tmp_path / "thesis.txt", "--format", form, "--force")
    assert isinstance(error, RecordingError) and "not an earlier export" in str(error)
    assert (tmp_path / "thesis.txt").read_text().startswith("dear reader")


def test_export_with_force_replaces_packets_by_a_folder_and_back(recorded: Path, tmp_path: Path) -> None:
    for form in ("packets", "npy", "packets"):
        result = CliRunner().invoke(
            app, ["export", str(recorded), "--to", str(tmp_path / "out"), "--format", form, "--force"]
        )
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out").is_dir() == (form == "npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run.acts"]


def test_export_analyze_and_import_say_where_they_cannot_write_or_read(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    for arguments in (
        ("export", recorded, "--to", inside),
        ("analyze", recorded, "--to", inside),
        ("import", tmp_path, "--to", tmp_path / "y"),
    ):
        error = refused(*arguments)
        assert isinstance(error, RecordingError) and str(tmp_path) in str(error), arguments


@pytest.mark.parametrize(
    "command",
    [
        "export {run} --to {file}/x",
        "analyze {run} --to {file}/x",
        "import {run}/absent --to {file}/x",
        "probe import absent.gguf --out {file}/x",
        "probe train --out {file}/x",
        "capture actscope/builtin {prompts} --to {file}/x",
        "harvest --model actscope/builtin --dataset builtin --sites last --out {file}/x",
        "serve actscope/builtin --port 0 --record {file}/x",
        "serve actscope/builtin --port 0 --record rec --keep-on-disk {file}/x",
        "demo --port 0 --record {file}/x",
        "feed --config test --port 0 --state {file}/x",
        "metrics report {run} --output {file}/x",
        "metrics report {run} --output absent/x",
        "metrics report {run} --output {run}",
        "metrics io --source proc --count 1 --output {file}/x",
    ],
)
def test_what_cannot_be_written_to_is_refused_before_the_work(
    command: str, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A serve with --record where nothing can be written loaded its model first, and an export's remedy was of a full disk."""
    (tmp_path / "file").write_text("")
    (tmp_path / "prompts").write_text("hello\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "run"))
    for work in (
        "engines.hf.loading.load", "engines.hf.spawn.subprocess.Popen", "harvest.driver.harvest", "analysis.report.measure",
        "recording.importing.import_packets", "metrics.report.page.report_html",
    ):  # fmt: skip
        monkeypatch.setattr(f"actscope.{work}", None)
    words = command.format(run=recorded, file=tmp_path / "file", prompts=tmp_path / "prompts").split()
    error = refused(*words)
    assert isinstance(error, ActscopeError), error
    assert words[-1].removesuffix("/x") in str(error)
    assert "make room" not in str(error) and any(
        what in str(error) for what in ("choose another", "name a file", "no directory")
    )


def test_info_fits_80_columns_and_gives_ids_in_full(recorded: Path) -> None:
    said = CliRunner().invoke(app, ["info", str(recorded)]).stdout
    assert said.count("chatcmpl-0123456789abcdef0123456789abcdef") == 2  # the mark's, and in the list
    lines = [line for line in said.splitlines() if str(recorded) not in line]
    assert max(map(len, lines)) <= 80


def test_recover_names_the_option_of_the_command_line(recorded: Path) -> None:
    (segment,) = recorded.glob("*.mcap")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 3] ^= 1
    segment.write_bytes(raw)
    found = json.loads(CliRunner().invoke(app, ["recover", str(recorded), "--json"]).stdout)
    assert not found["ok"] and "--salvage" in found["error"]


def test_progress_off_a_terminal_is_silent_for_what_is_soon_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar() as progress:
        progress.update("bytes", 1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("actscope.cli.common.progress._EVERY_S", -1.0)
    with ProgressBar() as progress:
        progress.update("bytes", 500_000, 1_000_000)
    assert re.fullmatch("bytes: 50%\n", capsys.readouterr().err)


def test_what_a_newcomer_types_is_answered_by_its_own_name(recorded: Path, tmp_path: Path) -> None:
    """A path that is not there was refused by the hub's client with a rule about ids; three dots stood for nothing."""
    said = str(refused("capture", "./absent", _prompts(tmp_path), "--to", tmp_path / "run"))
    assert said.startswith("./absent: there is no such directory. Give a Hugging Face id")
    assert "did you mean zstd?" in str(
        refused("capture", "m", _prompts(tmp_path), "--to", tmp_path / "run", "--codec", "zst")
    )
    error = str(refused("export", recorded, "--to", tmp_path / "x", "--requests", "b"))
    assert "has no request 'b'; it has 1: chatcmpl-" in error and "…" not in error


def _prompts(folder: Path) -> Path:
    (folder / "prompts").write_text("hello\n")
    return folder / "prompts"


def test_probe_test_takes_directories_and_names_a_path_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        str(refused("probe", "test", tmp_path / "empty"))
        == f"{tmp_path}/empty: no probe files (*.safetensors, *.json) in it"
    )
    probe = Path(__file__).parents[1] / "data" / "probe-0.1.safetensors"
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.safetensors").write_bytes(probe.read_bytes())
    assert ": ok, danger" in CliRunner().invoke(app, ["probe", "test", str(tmp_path / "some")]).stdout
    (tmp_path / "some" / "b.json").mkdir()
    with pytest.raises(ProbeError) as error:
        load_probe(tmp_path / "some" / "b.json")
    assert str(error.value).count("b.json") == 1
