"""Clients and frameworks in an environment of their own, against both kinds of server. Elsewhere the report says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import SERVERS, Target, why_not_here
from support.gateway.stage import Place

_WHY_NOT = why_not_here()
collect_ignore_glob = ["test_*.py"] if _WHY_NOT else []
SECONDS_PER_TEST = 400


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _WHY_NOT:
        terminalreporter.write_line(f"tests/clients: not run here, {_WHY_NOT}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A client that hangs fails its test."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS_PER_TEST))


@pytest.fixture(scope="session", params=SERVERS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """`actscope serve`, and `actscope gateway` in front of vLLM on CPU; both with the built-in model."""
    with SERVERS[request.param]() as target:
        yield target


@pytest.fixture
def place(target: Target) -> Place:
    return target.place
