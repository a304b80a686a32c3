"""Names and ids of files and clients cannot move the cursor, hide text, set the title or begin lines in a terminal or a log."""

from __future__ import annotations

import ast
import json
import logging
import sys
from pathlib import Path

import pytest
from support.attacks.recordings import _STORE
from support.recordings.made import frames_of, step_of

from actscope.cli import main
from actscope.cli.common.output import legible
from actscope.cli.feed.logs import log_to
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.runtime.printable import one_line, printable

#: Clear the screen, set the title, one C1 control, an override of direction, a backspace, a carriage return.
NASTY = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202ereversed\x08\rforged"
SITE = f"layers.0.{NASTY}"
CLI = Path(sys.modules["actscope.cli"].__file__ or "").parent


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording whose site, request, model and mark have names with escapes."""
    spec = RecordingSpec((SITE,), model={"name": NASTY, "revision": NASTY})
    with Recorder.create(tmp_path / "r.acts", spec, PipelineOptions(workers=1, store=_STORE)) as recorder:
        step = step_of(1, [(f"{NASTY}\nfake line", 0, 4)])
        recorder.write(step, frames_of(step, [SITE]))
        recorder.mark(f"{NASTY}\nfake line", NASTY)
    return tmp_path / "r.acts"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["actscope", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def harmless(text: str) -> bool:
    return not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in text)


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["info", "--json"],
        ["verify"],
        ["verify", "--json"],
        ["recover"],
        ["export", "--to", "TO"],
        ["analyze"],
    ],
)
def test_no_command_writes_control_characters_of_a_recording(
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    run(monkeypatch, command[0], str(recording), *(str(tmp_path / "out") if a == "TO" else a for a in command[1:]))
    said = capsys.readouterr()
    assert harmless(said.out) and harmless(said.err), (said.out, said.err)
    assert said.out.strip() and "\nfake line" not in said.out
    if "--json" in command:
        json.loads(said.out)


def test_an_error_that_quotes_a_name_is_harmless(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "export", str(recording), "--to", "x", "--sites", f"no{NASTY}") == 2
    assert run(monkeypatch, "info", f"no\x1b[2Jwhere{NASTY}") == 2
    said = capsys.readouterr()
    assert harmless(said.err) and "\\u001b[2J" in said.err


@pytest.mark.parametrize(
    "command", ["info", "verify", "recover", "analyze", "probe test", "probe import", "probe train", "doctor"]
)
def test_a_path_with_a_line_break_begins_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, *command.split(), str(tmp_path / "x\nforged: all is well")) != 0
    said = capsys.readouterr()
    assert "forged" in said.out + said.err
    assert not any(line.startswith("forged") for line in (said.out + said.err).splitlines())


def test_a_file_of_a_directory_of_probes_begins_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "enc_1_x\nforged.json").write_text("{}")
    assert run(monkeypatch, "probe", "list", str(tmp_path)) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "enc_1_x\\u000aforged.json" in said[0]


def test_log_lines_are_harmless_and_none_looks_like_another(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("actscope")
    before = list(log.handlers), log.propagate, log.level
    try:
        log_to("info")
        log.error("request %s", f"{NASTY}\n2026-01-01 00:00:00 INFO actscope: all is well")
    finally:
        log.handlers[:], log.propagate = before[0], before[1]
        log.setLevel(before[2])
    said = capsys.readouterr().err
    assert harmless(said) and "\n2026" not in said and "    2026-01-01" in said


def test_escapes_are_those_of_json_and_ordinary_text_stays() -> None:
    ordinary = "déjà vu 日本語 👩\u200d💻 tab\tand\nnewline"
    assert printable(ordinary) == ordinary
    assert json.loads(f'"{printable(NASTY)}"') == NASTY
    assert one_line("a\nb\tc") == "a\\u000ab\\u0009c"
    assert legible({"a\n": ["b\x1b", 1, None, {"c": "d\n"}]}) == {"a\\u000a": ["b\\u001b", 1, None, {"c": "d\\u000a"}]}


def test_commands_print_through_one_function() -> None:
    """`show` and `show_banner` of `cli.common.output` alone print, so that no command forgets the escapes."""
    own = {CLI / "common" / "output.py", CLI / "feed" / "logs.py", CLI / "__init__.py"}
    found = []
    for path in sorted(set(CLI.rglob("*.py")) - own):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "typer.echo",
                "click.echo",
                "typer.secho",
            ):
                found.append(f"{path.relative_to(CLI)}:{node.lineno}")
    assert found == []
