"""One scripted engine with a gateway in front of it for all tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from actscope.testing.gateway_stage import EngineProcess, Place, Stage


@pytest.fixture(scope="session")
def shared_stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def engine(shared_stage: Stage) -> EngineProcess:
    return shared_stage.engine()


@pytest.fixture(scope="session")
def place(shared_stage: Stage, engine: EngineProcess) -> Place:
    return shared_stage.gateway(keep_alive_seconds=0.2)


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    with place.client() as client:
        yield client


@pytest.fixture
def stage() -> Iterator[Stage]:
    """For tests that break things."""
    stage = Stage()
    yield stage
    stage.close()
