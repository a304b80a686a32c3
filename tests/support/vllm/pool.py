"""One engine at a time for a whole run of the tests: a start costs ten seconds and more, and the machine holds no two."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from support.vllm.bed import Configuration, EngineProcess, Offline

Kind = TypeVar("Kind", bound=EngineProcess)


def short_directory() -> Path:
    """A private directory with a short path: a unix socket's may have 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="bed-"))


class Engines:
    """Starts engines one at a time: the machine is too small for two, and one start costs ten seconds and more."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._stack = ExitStack()
        self._running: Offline | None = None

    def start(self, kind: type[Kind], configuration: Configuration, own_cache: bool = False) -> Kind:
        """A new engine; any other is ended first. `own_cache` gives it an empty compile cache of its own."""
        self.end()
        directory = short_directory()
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        cache = self._private_cache(directory) if own_cache else self._shared
        engine = kind(configuration, directory, cache)
        self._stack.enter_context(engine)
        return engine

    def offline(self, configuration: Configuration) -> Offline:
        """An engine of that configuration: the one that runs, emptied, when it has it; a new one otherwise."""
        running = self._running
        if running is None or running.configuration != configuration or running.process.poll() is not None:
            running = self._running = self.start(Offline, configuration)
        else:
            running.reset()
        return running

    def end(self) -> None:
        self._running = None
        self._stack.close()

    def _private_cache(self, directory: Path) -> Path:
        """Empty but for what vLLM knows of models' classes, which no capture can change."""
        known = self._shared / "modelinfos"
        known.mkdir(parents=True, exist_ok=True)
        cache = directory / "cache"
        cache.mkdir()
        (cache / "modelinfos").symlink_to(known)
        return cache
