"""Rings of the test's own, a private runtime directory, and children that write or read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actscope.ring.host import RingReader, RingSpec, RingWriter

CHILD = Path(__file__).parents[1] / "support/ring/reader_process.py"
MakeRing = Callable[..., tuple[RingWriter, RingReader]]
Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    """A writer and a reader in this process; small enough to wrap at once."""
    ends: list[RingWriter | RingReader] = []

    def make(
        rows: int = 64, width: int = 4, steps: int = 16, spans: int = 32, dtype: str = "float32"
    ) -> tuple[RingWriter, RingReader]:
        writer = RingWriter.create(RingSpec(rows, width, steps, spans, dtype))
        ends.append(writer)
        reader = RingReader.attach(writer.name)
        ends.append(reader)
        return writer, reader

    yield make
    for end in ends:
        end.close()


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts tests/support/ring/reader_process.py; each one is killed at the end if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(CHILD), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    path = tmp_path / "run"
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(path))
    return path
