"""Start and stop the engine's process, from a parent that need not import torch."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType

import msgspec

from actscope.engines.hf.settings import EngineSettings
from actscope.errors import EngineError
from actscope.ring.discovery import EngineCard, read_cards, sweep
from actscope.runtime.directory import runtime_dir

GRACE_S = 10.0


def new_card_id() -> str:
    """Return a random id for an engine card, 16 hexadecimal digits."""
    return secrets.token_hex(8)


class EngineProcess:
    """A child process that serves one model and ends with its parent. A context manager.

    Raises:
        RingError: There is no runtime directory in which it could be found.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        arguments = msgspec.json.encode(settings).decode()
        chosen = {"ACTSCOPE_RUNTIME_DIR": str(runtime_dir())}  # the child need not choose, and warn, again
        self._child = subprocess.Popen(
            [sys.executable, "-m", "actscope.engines.hf", arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **chosen},
        )

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._child.pid

    def wait_ready(self, timeout_s: float = 600.0, tick: Callable[[float], None] | None = None) -> EngineCard:
        """Wait until the engine serves requests.

        Args:
            timeout_s: Maximum time to wait, in seconds.
            tick: Called regularly with the seconds waited, for a progress line.

        Returns:
            The engine's card.

        Raises:
            EngineError: The engine exited (its message is on standard error), or the time ran out.
        """
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < timeout_s:
            card = next((c for c in read_cards() if c.id == self.settings.card_id), None)
            if card is not None:
                return card
            if self._ended_within(0.05):
                raise EngineError(
                    f"the engine for {self.settings.model!r} ended at start (exit code {self._child.returncode})"
                )
            if tick is not None:
                tick(waited)
        self.close()
        raise EngineError(f"the engine for {self.settings.model!r} was not ready after {timeout_s:.0f} s")

    def wait(self) -> int:
        """Block until the process exits. Returns its exit code."""
        return self._child.wait()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ask the process to exit, and kill it after `GRACE_S` seconds. Leaves no files or shared memory behind."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        if not self._ended_within(GRACE_S):
            self._child.kill()
            self._child.wait()
            sweep()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
