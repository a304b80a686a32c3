"""One scripted engine with a gateway in front of it for all tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from support.gateway.stage import EngineProcess, Place, Stage, await_scores


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


@pytest.fixture(scope="session")
def vllm_stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def vllm_engine(vllm_stage: Stage) -> EngineProcess:
    """An engine that shows itself as vLLM's plugin does: on a port that its card does not name."""
    return vllm_stage.engine("--kind", "vllm")


@pytest.fixture(scope="session")
def vllm_place(vllm_stage: Stage, vllm_engine: EngineProcess) -> Place:
    place = vllm_stage.gateway(upstream=vllm_engine.endpoint)
    await_scores(place)
    return place


@pytest.fixture(scope="session")
def parts_stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def parts_engine(parts_stage: Stage) -> EngineProcess:
    """The same in two stages: `danger` is the first one's, `joy` the second one's."""
    return parts_stage.engine("--kind", "vllm", "--parts", "2")


@pytest.fixture(scope="session")
def parts_place(parts_stage: Stage, parts_engine: EngineProcess) -> Place:
    place = parts_stage.gateway(upstream=parts_engine.endpoint)
    await_scores(place)
    return place


@pytest.fixture
def stage() -> Iterator[Stage]:
    """For tests that break things."""
    stage = Stage()
    yield stage
    stage.close()
