"""Waiting for a state that another thread or process brings about, and for the end of a process."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOOK_S = 0.005


def until(look: Callable[[], T | None], seconds: float = 30.0, *, what: str = "the state that was waited for") -> T:
    """Return the first true answer of `look`; fails when none came within `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(_LOOK_S)
    return found


def interrupt(process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Interrupt a process as a terminal does, and read what it still says. One that does not end is killed, and fails the test.

    `Popen.__exit__` waits for ever for a process that still runs.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=seconds)
    finally:
        process.kill()


def can_unshare(kind: str) -> bool:
    """Return whether this process may make namespaces of a kind ("--mount", "--pid"): it needs root, and in a container leave."""
    try:
        command = ["unshare", kind, *(["--fork"] if kind == "--pid" else []), "true"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
