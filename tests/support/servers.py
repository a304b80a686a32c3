"""A real engine on the built-in model with a real gateway in front of it, as `actscope serve` runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.gateway.stage import Place
from support.waiting import interrupt

from actscope.engines.builtin import NAME

COMMAND = [sys.executable, "-m", "actscope"]


@dataclass(frozen=True)
class Serving:
    """A running `actscope serve`: its process, its link with the token, and its runtime directory."""

    process: subprocess.Popen[str]
    link: str
    directory: Path

    @property
    def place(self) -> Place:
        url, _, token = self.link.partition("/?token=")
        return Place(url, token, NAME)

    @property
    def environment(self) -> dict[str, str]:
        """In which other commands find this engine."""
        return os.environ | {"ACTSCOPE_RUNTIME_DIR": str(self.directory)}


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    """`actscope serve actscope/builtin`, up; interrupted at the end as a terminal does."""
    directory = Path(tempfile.mkdtemp(prefix="acts-"))
    environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": str(directory)}
    command = [*COMMAND, "serve", NAME, "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "/?token=" in line:
                break
        else:
            raise AssertionError("actscope serve ended: " + "".join(said))
        try:
            yield Serving(process, line.split()[-1], directory)
        finally:
            interrupt(process)
            shutil.rmtree(directory, ignore_errors=True)
