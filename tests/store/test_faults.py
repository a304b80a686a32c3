"""Every single write and sync of a recording, and of its recovery, fails once: promises that were made are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.store.parts import CYCLES

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, and the shim that breaks writes is C")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(SUPPORT / "store/shim.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@pytest.mark.parametrize("direct", ["auto", "no"])
@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("fail", "EIO"),
        ("fail", "ENOSPC"),
        ("fail", "EFBIG"),
        ("short", "EIO"),
        ("tear", "EIO"),
        ("recover", "EIO"),
        ("salvage", "ENOSPC"),
    ],
)
def test_every_failing_call_keeps_the_promises_made_before_it(
    shim: Path, quick_path: Path, mode: str, error: str, direct: str
) -> None:
    """Each system call fails once, in turn (every second one without ACTSCOPE_TEST_CYCLES); `faulty.py` says what must hold."""
    step = "1" if CYCLES else "2"
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, "-m", "support.store.faulty", str(quick_path), mode, error, direct, step]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 10, "nothing was struck: is the shim loaded?"
