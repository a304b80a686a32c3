"""Every test has a runtime directory of its own, so that engines of tests and of the user never meet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private runtime directory with a short path: a unix socket's may have 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="acts-"))
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
