"""Engines for the tests of real vLLM. Where vLLM is not installed, none of this folder runs, and the report says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HAS_VLLM = find_spec("vllm") is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]
SECONDS_PER_TEST = 400
#: `make test` takes one way to run of each kind; with VLLM_TESTS=all every model is run in every way, which takes twice as long.
ALL = os.environ.get("VLLM_TESTS") == "all"

if HAS_VLLM:
    from support.vllm.models import make_adapter, make_model
    from support.vllm.pool import Engines, short_directory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not HAS_VLLM:
        terminalreporter.write_line("tests/engines/vllm: not run here, vLLM is not installed; run `make test-vllm`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An engine that hangs fails its test instead of the night."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS_PER_TEST))


@pytest.fixture(scope="session")
def bed_directory() -> Iterator[Path]:
    """Models and the caches that engines share, for one run of the tests; kept in $VLLM_BED_DIRECTORY for many runs."""
    if "VLLM_BED_DIRECTORY" in os.environ:
        yield Path(os.environ["VLLM_BED_DIRECTORY"])
        return
    directory = short_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def model(bed_directory: Path) -> Callable[[str], Path]:
    """`model("llama")`: the directory of that small model; see `models.CONFIGURATIONS` for the names."""
    return lambda name: make_model(name, bed_directory / "models")


@pytest.fixture(scope="session")
def adapter(bed_directory: Path) -> Path:
    """A LoRA adapter for `model("llama")`."""
    return make_adapter(bed_directory / "models")


@pytest.fixture(scope="session")
def engines(bed_directory: Path) -> Iterator[Engines]:
    """For tests that can share an engine: `engines.offline(configuration)`."""
    pool = Engines(bed_directory / "cache")
    yield pool
    pool.end()


@pytest.fixture
def start(engines: Engines) -> Iterator[Callable[..., Any]]:
    """`start(Served, configuration, own_cache=True)`: an engine of the test's own, ended with it."""
    yield engines.start
    engines.end()
