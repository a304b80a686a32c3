"""Ctrl-C: every long command says what is kept and what to type, and ends with exit code 130 and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.recordings.made import frames_of, step_of

from actscope import cli
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITE = "layers.0.resid_post"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with Recorder.create(tmp_path / "run.acts", RecordingSpec((SITE,), codec="none")) as recorder:
        step = step_of(1, [("a", 0, 4)])
        recorder.write(step, frames_of(step, (SITE,)))
    return tmp_path / "run.acts"


@pytest.mark.parametrize(
    ("command", "at", "said"),
    [
        ("analyze {run} --to {out}", "actscope.analysis.report.measure", "nothing was written; repeat the command"),
        ("export {run} --to {out}", "actscope.recording.export.registry.check_free", "nothing was written to {out}"),
        ("import {run} --to {out}", "actscope.recording.importing.import_packets", "nothing was written to {out}"),
        ("verify {run}", "actscope.recording.reading.verification.verify", "not everything was checked; repeat"),
        ("bench ring", "actscope.bench.ring.run", "no result of bench ring is kept; repeat the command"),
        (
            "replay {run} --no-browser --port 0",
            "actscope.gateway.server.GatewayServer.run_here",
            "{run} is as it was; repeat",
        ),
        (
            "capture actscope/builtin {text} --to {out}",
            "actscope.engines.hf.loading.load",
            "{out} has 0 of 1 prompts; repeat the command with --resume to continue",
        ),
        (
            "harvest --model m --dataset builtin --out {out}",
            "actscope.harvest.driver.harvest",
            "{out} keeps the units that it had; repeat the command to continue",
        ),
        ("demo --no-browser --port 0", "actscope.gateway.server.GatewayServer.run_here", "no request is kept"),
        (
            "serve m --record {out} --no-browser --port 0",
            "actscope.gateway.server.GatewayServer.run_here",
            "marked requests are kept in {out}",
        ),
        (
            "feed --config test --port 0",
            "actscope.feed.server.run.FeedServer.run_here",
            "stopped before any row was ready",
        ),
        (
            "feed --config test --port 0 --state {state}",
            "actscope.feed.server.run.FeedServer.run_here",
            "the position is kept in {state}; repeat the command to go on there",
        ),
    ],
)
def test_an_interrupted_command_says_what_is_kept_and_how_to_go_on(
    command: str,
    at: str,
    said: str,
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any, **_: object) -> None:
        if arguments and hasattr(arguments[0], "_socket"):
            arguments[0]._socket.close()  # of a server, which its own `run_here` closes
        raise KeyboardInterrupt

    (tmp_path / "text").write_text("hello\n")
    words = {name: str(tmp_path / name) for name in ("out", "text", "state")} | {"run": str(recorded)}
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("actscope.cli.common.servers.running_engine", _no_engine)
    monkeypatch.setattr(at, interrupted)
    monkeypatch.setattr("sys.argv", ["actscope", *command.format(**words).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 130, err
    assert said.format(**words) in err and "Traceback" not in err
    assert not os.path.lexists(tmp_path / "out")


class _no_engine:  # takes the place of a function
    """An engine that is not there."""

    def __init__(self, settings: object) -> None:
        self.wait = lambda: None

    def __enter__(self) -> _no_engine:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
    ],
    ids=lambda value: "-".join(one.name for one in value) if isinstance(value, list) else None,
)
def test_a_server_ends_in_order_at_each_signal_also_at_a_second_one(
    signals: list[signal.Signals], code: int, tmp_path: Path
) -> None:
    """A second Ctrl-C was a traceback of its application, and so was SIGHUP."""
    command = [sys.executable, "-m", "actscope", "gateway", "--port", "0", "--no-browser"]
    environment = {**os.environ, "ACTSCOPE_RUNTIME_DIR": str(tmp_path / "run")}
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert child.stderr is not None
    with child:
        while "Ctrl-C stops it" not in (line := child.stderr.readline()):
            assert line, "the gateway ended before it served"
        for number in signals:
            child.send_signal(number)
        err = child.stderr.read()
    assert child.returncode == code and "Traceback" not in err, err


def test_sigterm_ends_a_command_like_ctrl_c_with_a_code_of_its_own(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export that a job's time limit ended left its temporary directory."""

    def terminated(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("actscope.recording.export.registry.check_free", terminated)
    monkeypatch.setattr("sys.argv", ["actscope", "export", str(recorded), "--to", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143 and "nothing was written to" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.acts"]
