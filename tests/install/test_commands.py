"""Every command works on every installation, or names the line that installs what it lacks. None fails with a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
from support.install import hiding_process
from support.install.closure import hidden_modules, packages_of
from support.install.commands import ATTEMPTS, CALLS, install_lines, prepare

from actscope.cli.app import app

#: Installations: without extras, and with each extra that makes a difference to the commands and is quick to try.
INSTALLATIONS = ("", "gateway,record", "export", "probes", "hf")


def tried(
    directory: Path, extras: str, runs: list[dict[str, Any]], beside: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Run commands as an installation with these extras would: with what it does not have hidden."""
    prepare(directory)
    home = directory / "home"
    home.mkdir(mode=0o700)
    order = json.dumps({"hidden": hidden_modules(*filter(None, extras.split(",")), beside=beside), "runs": runs})
    with tempfile.TemporaryDirectory(prefix="acts-") as short:  # sockets lie in it, whose paths are bounded
        environment = os.environ | {"HOME": str(home), "ACTSCOPE_RUNTIME_DIR": short, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, hiding_process.__file__, order],
            cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("extras", INSTALLATIONS)
def test_a_command_works_or_names_its_install_line(extras: str, tmp_path: Path) -> None:
    """Without extras it names the extra of the table; where that extra's packages are there, it works."""
    there = packages_of(*filter(None, extras.split(",")))
    enough = {one: packages_of(*filter(None, one.extra.split(","))) <= there for one in ATTEMPTS}
    attempts = [one for one in ATTEMPTS if one.works or not enough[one]]
    runs = [{"words": one.words, "until": one.works if one.until else ""} for one in attempts]
    wrong = []
    for one, found in zip(attempts, tried(tmp_path, extras, runs), strict=True):
        lines = install_lines(found["output"]) if found["code"] == 2 else []
        named = bool(lines) if extras else lines == [one.extra]
        works = one.works and one.works in found["output"]
        if "Traceback" in found["output"] or not (works or (named and not enough[one])):
            wrong.append(f"{one.line}: {found['code']}: {found['output'][-300:]}")
    assert wrong == []


def test_a_call_in_python_names_its_install_line(tmp_path: Path) -> None:
    """The public names of the package raise MissingExtra, and not what a package of ours missed."""
    found = tried(tmp_path, "", [{"code": code} for code in CALLS])
    last = {code: one["output"].strip().rpartition("\n")[2] for code, one in zip(CALLS, found, strict=True)}
    assert {code: install_lines(line) for code, line in last.items()} == {
        code: [extra] if extra else [] for code, extra in CALLS.items()
    }
    assert [code for code, extra in CALLS.items() if extra and "MissingExtra: " not in last[code]] == []


def test_a_trainer_needs_only_torch_beside_actscope(tmp_path: Path) -> None:
    """The feed's client works in an environment without extras that has torch: it asks the feed, which is not there."""
    code = "from actscope.feed import FeedClient; FeedClient('http://127.0.0.1:1', 'x', timeout=1).get_activations_tensor(2)"
    (found,) = tried(tmp_path, "", [{"code": code}], beside=("torch",))
    assert "actscope.errors.UpstreamError" in found["output"], found["output"]


def test_every_command_is_tried() -> None:
    """A new command comes with an attempt, so that it is tried on every installation."""
    tree: Any = typer.main.get_command(app)
    names = {
        f"probe {sub}" if name == "probe" else name
        for name, group in tree.commands.items()
        for sub in getattr(group, "commands", [""])
    }
    lines = {" ".join(one.line.split()[: 1 + one.line.startswith("probe")]) for one in ATTEMPTS}
    assert names <= lines
