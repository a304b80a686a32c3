"""The code blocks of a page, and a player that runs them as written, in order, in one folder and one Python namespace."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import httpx
from support.waiting import interrupt, until

TOKEN = "the-token-of-this-test"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: Commands that run until they are stopped, and what they answer once they are up.
_SERVERS = {"serve": "/v1/models", "feed": "/stats"}


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: where it is, its language ("" for a shell's lines, pictures and data), and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page and the first line, which names a block also after lines were added above it."""
        return f"{self.page.name}: {self.text.strip().splitlines()[0].split('#')[0].strip()}"


def blocks_of(page: Path) -> list[CodeBlock]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    return [CodeBlock(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in _FENCE.finditer(text)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class BlockPlayer:
    """Runs blocks. Use it as a context manager: at the end, servers that blocks have started are interrupted.

    Attributes:
        folder: Where blocks run.
        instead: Texts of blocks and what stands for them here, such as a local model for a hub id.
        more: Further arguments of a command, by its name, such as the port.
        namespace: Names that Python blocks share, and that a page takes for granted, such as `model`.
    """

    folder: Path
    instead: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, list[str]] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    _running: dict[str, tuple[subprocess.Popen[str], TextIO]] = field(default_factory=dict)

    def __enter__(self) -> BlockPlayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self.stop(name)

    def play(self, block: CodeBlock) -> None:
        """Run one block. A command that fails fails the test, with what it said."""
        text = block.text
        for written, here in self.instead.items():
            text = text.replace(written, here)
        if block.language == "python":
            with contextlib.chdir(self.folder):
                exec(compile(text, f"{block.page.name}:{block.line}", "exec"), self.namespace)
            return
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                assert words[0] in ("actscope", ".venv/bin/actscope"), f"{block.name}: no command of actscope: {line}"
                self._command(words[1:])

    def _command(self, words: list[str]) -> None:
        name = words[0]
        command = [sys.executable, "-m", "actscope", *words, *self.more.get(name, [])]
        if name in _SERVERS and "--check" not in words:
            self._serve(name, command)
            return
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"

    def _serve(self, name: str, command: list[str]) -> None:
        self.stop(name)
        log = (self.folder / f"{name}.log").open("w+")
        process = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, text=True)
        self._running[name] = (process, log)
        port = command[command.index("--port") + 1]
        url = f"http://127.0.0.1:{port}{_SERVERS[name]}"

        def is_up() -> bool:
            log.seek(0)
            assert process.poll() is None, f"{shlex.join(command)} ended: {log.read()}"
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
            return False

        until(is_up, 300, what=f"{shlex.join(command)} is up")

    def stop(self, name: str) -> None:
        """Interrupt a server, if it runs."""
        if name in self._running:
            process, log = self._running.pop(name)
            interrupt(process)
            log.close()

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"ACTSCOPE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub")}
