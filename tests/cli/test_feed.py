"""`actscope feed`: settings, checks and messages; and the whole way, from the command to rows and back to nothing."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import constants
from support.servers import COMMAND
from support.waiting import interrupt, until
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.cli.feed.logs import log_to
from actscope.errors import SettingsError
from actscope.feed.planning.presets import PRESETS


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without variables of the developer's own, without a network, and with the log as it was afterwards."""
    for name in [name for name in os.environ if name.startswith("ACTSCOPE_FEED") or name == "ACTSCOPE_TOKEN"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    log = logging.getLogger("actscope")
    before = log.handlers[:], log.propagate, log.level
    yield
    for handler in log.handlers:
        if handler not in before[0]:
            handler.close()
    log.handlers[:], log.propagate = before[0], before[1]
    log.setLevel(before[2])


def check(*arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and findings of `actscope feed --check --json`."""
    done = CliRunner().invoke(app, ["feed", "--check", "--json", "--port", "0", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, {finding["what"]: finding for finding in json.loads(done.stdout)}


def refused(*arguments: object) -> str:
    error = CliRunner().invoke(app, ["feed", *map(str, arguments)]).exception
    assert isinstance(error, SettingsError)
    return str(error)


def test_a_check_of_the_test_preset_is_all_ok() -> None:
    """On any machine: every line, the arithmetic among them, and shared memory really mapped."""
    code, found = check("--config", "test", "--device", "cpu")
    assert code == 0, found
    assert list(found) == [
        "packages", "settings", "start", "runtime folder", "dataset", "model", "device", "sites", "memory",
        "shared memory", "port",
    ]  # fmt: skip
    assert "100,000 texts" in found["dataset"]["found"] and "layers.2.resid_post" in found["sites"]["found"]
    assert "65,536 rows x 1 site(s) x 256 x 4 bytes" in found["memory"]["found"]


def test_a_check_takes_seconds_and_says_it_in_lines_as_the_doctor_does() -> None:
    """In a process of its own, from the shell."""
    begin = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "feed", "--check", "--config", "test", "--port", "0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "", done
    assert time.monotonic() - begin < 20
    assert all(line.startswith(("ok   ", "      ")) for line in done.stdout.splitlines())


def test_the_whole_buffer_is_mapped_when_that_is_asked_for() -> None:
    """`--full` maps the whole buffer and prints its size."""
    _, found = check("--config", "test", "--full")
    assert found["shared memory"]["ok"] and found["shared memory"]["found"].startswith("68.4 MB mapped")


@pytest.mark.parametrize(
    ("arguments", "what", "says"),
    [
        (["--windows", "1"], "settings", "expected at least 2, found 1 (set by --windows)"),
        (["--resume", "x"], "start", "seed:epoch:cursor"),
        (["--resume", "3:0:0"], "start", "seed 3"),
        (["--state", "/nowhere/at/all"], "start", "no directory"),
        (["--dataset", "nothing.jsonl"], "dataset", "no such file"),
        (["--dataset", "builtin:poems"], "dataset", "builtin:story"),
        (["--dataset", "some/data"], "dataset", "not in the local cache"),
        (["--model", "./nowhere"], "model", "no such directory"),
        (["--model", "some/model"], "model", "not in the local cache"),
        (["--sites", "0,77"], "sites", "layers 0 to 4"),
        (["--width", "100"], "sites", "expected 100"),
        (["--context", "1M"], "sites", "reads at most 2048"),
        (["--buffer-rows", "900T"], "memory", "--buffer-rows"),
        (["--device", "cuda:7"], "device", "cuda:7"),
    ],
)
def test_what_would_not_work_is_a_no(
    arguments: list[str], what: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own line says what is wrong and what to do, the others go on, and the exit code is 1."""
    monkeypatch.setattr("actscope.cli.feed.check.has_gpu", lambda: False)
    code, found = check(*arguments)
    assert code == 1 and not found[what]["ok"]
    assert says in found[what]["found"] + found[what]["remedy"]


def test_a_model_out_of_reach_can_be_checked_with_its_width() -> None:
    """With the width given, the buffer's size is checked, and what remains unknown is named."""
    _, found = check("--model", "some/model", "--width", "768", "--buffer-rows", "64k")
    assert found["sites"]["ok"] and "how large its weights are" in found["sites"]["found"]
    assert found["memory"]["ok"] and "not known" in found["memory"]["found"]


def test_a_port_that_is_taken_is_a_no() -> None:
    """And the way out of it is the flag."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, found = check("--port", taken.getsockname()[1])
    assert code == 1 and "cannot listen" in found["port"]["found"] and "--port" in found["port"]["remedy"]


def test_a_runtime_folder_that_others_can_read_is_a_no(runtime_directory: Path) -> None:
    """Near consumers would find a socket there that is not safe."""
    runtime_directory.chmod(0o755)
    code, found = check()
    assert code == 1 and not found["runtime folder"]["ok"]


def test_files_are_read_and_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The first text of the dataset is in the line."""
    (tmp_path / "texts.jsonl").write_text('{"words": "a fox"}\n{"words": "a wolf"}\n')
    _, found = check("--dataset", tmp_path / "texts.jsonl", "--column", "words")
    assert found["dataset"]["ok"] and "2 texts" in found["dataset"]["found"] and '"a fox"' in found["dataset"]["found"]
    _, found = check("--dataset", tmp_path / "texts.jsonl")
    assert not found["dataset"]["ok"] and "words" in found["dataset"]["found"]


def test_the_presets_are_printed_with_their_memory_here() -> None:
    """As a table, and as JSON with numbers; flags change them all."""
    said = CliRunner().invoke(app, ["feed", "--presets"]).stdout
    assert all(f"\n{name} " in said for name in PRESETS) and "memory here: " in said
    assert max(map(len, said.splitlines())) <= 120
    changed = ["feed", "--presets", "--json", "--sites", "all", "--model", "actscope/builtin"]
    lines = json.loads(CliRunner().invoke(app, changed).stdout)
    assert [(line["preset"], line["sites"]) for line in lines] == [(name, 5) for name in PRESETS]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "prodution"], "did you mean production"),
        (["--buffer-rows", "many"], "--buffer-rows 'many': expected a whole number"),
        (["--buffer-rows", "900T"], "what fits: at most buffer_rows"),
        (["--model", "some/model"], "hf download some/model"),
        (["--log-level", "loud"], "debug, info, warning, error"),
        (["--log-file", "/nowhere/feed.log"], "/nowhere/feed.log: cannot be written"),
        (["--token", "short"], "at least 8 characters"),
    ],
)
def test_a_start_that_cannot_work_is_refused_before_anything_is_started(arguments: list[str], says: str) -> None:
    """One message with what to do."""
    assert says in refused("--port", "0", *arguments)


def test_a_variable_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable as it would name a flag, and never contains the token."""
    monkeypatch.setenv("ACTSCOPE_FEED_WINDOWS", "x")
    assert "ACTSCOPE_FEED_WINDOWS 'x'" in refused("--config", "test")
    monkeypatch.setenv("ACTSCOPE_FEED_WINDOWS", "4")
    monkeypatch.setenv("ACTSCOPE_TOKEN", "hunter2")
    message = refused("--config", "test")
    assert "ACTSCOPE_TOKEN" in message and "hunter2" not in message


def test_a_log_file_is_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that was there before with other rights; the terminal gets the same lines."""
    path = tmp_path / "feed.log"
    path.write_text("old\n")
    path.chmod(0o644)
    log_to("warning", path)
    logging.getLogger("actscope.feed").warning("the wolf")
    logging.getLogger("actscope.feed").info("a fox")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("old\n") and path.read_text().endswith("WARNING actscope.feed: the wolf\n")
    assert capsys.readouterr().err.endswith("WARNING actscope.feed: the wolf\n")


def test_a_log_file_moves_aside_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three older ones are kept, all of them private."""
    monkeypatch.setattr("actscope.cli.feed.logs._MOST_BYTES", 100)
    log_to("info", tmp_path / "feed.log")
    for _ in range(9):
        logging.getLogger("actscope.feed").info("the wolf ran through the snow all night")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed.log", *(f"feed.log.{i}" for i in (1, 2, 3))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A link is refused: a user who can write to the directory must not choose where the log goes."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot be written"):
        log_to("info", tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@contextmanager
def feeding(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`actscope feed --config test`, up; its process, and what it said of itself. Interrupted at the end as a terminal does."""
    command = [*COMMAND, "feed", "--config", "test", "--port", "0", "--device", "cpu", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process, json.loads(line) if line else {}
        finally:
            interrupt(process)


def core_seconds(pid: int) -> float:
    """What a process has had of the cores, by proc(5)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_feed_comes_up_within_a_minute_gives_rows_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """From the shell to rows over HTTP, with one command; after Ctrl-C neither the server nor the generator is left.

    The minute is one of a core's time: other tests may run beside this one.
    """
    with feeding("--threads", "1", "--log-file", str(tmp_path / "feed.log")) as (process, said):
        place = {"base_url": said["url"], "headers": {"Authorization": f"Bearer {said['token']}"}}
        with httpx.Client(**place, timeout=90) as client:
            until(lambda: client.get("/stats").json()["ready"], 240)
            answer = client.get("/activations/tensor", params={"num_samples": 512})
            assert answer.status_code == 200, answer.text
            shape = tuple(map(int, answer.headers["X-Actscope-Shape"].split(",")))
            rows = np.frombuffer(answer.content, answer.headers["X-Actscope-Dtype"]).reshape(shape)
            assert rows.shape == (512, 256) and np.isfinite(rows).all() and rows.std() > 0
            stats = client.get("/stats").json()
            assert stats["ready"] and stats["counts"]["granted_rows"] == 512
            generator = stats["generator"]["pid"]
            assert core_seconds(process.pid) + core_seconds(generator) < 60
            log = tmp_path / "feed.log"
            until(lambda: "serving: the first window is full" in log.read_text())  # the foreground has seen it too
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not Path(f"/proc/{generator}").exists()
    assert said["token"] not in log.read_text()


def test_a_feed_whose_model_cannot_be_loaded_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed that fails before its first row exits with code 2 and the reason."""
    monkeypatch.setenv("ACTSCOPE_FEED_MAX_RESTARTS", "0")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}')
    with feeding("--model", str(tmp_path)) as (process, _):
        assert process.wait(90) == 2
        assert process.stderr is not None
        assert "actscope: the feed could not start: " in process.stderr.read()
