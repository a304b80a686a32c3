"""Ctrl-C: every long command says what is kept and what to type, and ends with exit code 130 and no traceback."""

from __future__ import annotations

import os
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
