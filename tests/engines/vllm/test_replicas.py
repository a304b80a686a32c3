"""Real vLLM with two data-parallel engines behind one port: each request has its scores, wherever it ran."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engines.vllm.test_gateway import SCORES, check, gateway
from support.gateway.stage import Place, picture
from support.vllm.bed import Configuration, Served
from support.vllm.pool import Engines, short_directory
from support.waiting import until

from actscope.engines.builtin import NAME, model_path, probes_path

RECORD = "kept.acts"
PROMPTS = ["Once upon a time", "The sea was", "A fox ran over the snow", "In the old house", "She said", "The fire"]


@pytest.fixture(scope="module")
def directory() -> Path:
    return short_directory()


@pytest.fixture(scope="module")
def served(engines: Engines, directory: Path) -> Iterator[Served]:
    """The built-in model in two engines, recording what is marked."""
    environment = {
        "ACTSCOPE_PROBES": str(probes_path()),
        "ACTSCOPE_MODEL_NAME": NAME,
        "ACTSCOPE_RECORD": str(directory / RECORD),
        "OMP_NUM_THREADS": "1",
    }
    configuration = Configuration(model_path(), arguments={"data_parallel_size": 2}, environment=environment)
    yield engines.start(Served, configuration)
    engines.end()


@pytest.fixture(scope="module")
def place(served: Served) -> Iterator[Place]:
    with gateway(served) as place:
        with place.client() as client:
            until(lambda: len(client.get("/v1/actscope/info").json()["replicas"]) == 2, 60)
        yield place


def complete(place: Place, **fields: Any) -> dict[str, Any]:
    """A text completion that must be answered."""
    with place.client(timeout=120) as client:
        body = {"model": place.model, "max_tokens": 6, "temperature": 0, **SCORES, **fields}
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_each_of_many_requests_has_its_scores_and_both_engines_ran_some(place: Place) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda prompt: complete(place, prompt=prompt), PROMPTS * 2))
    for answer in answers:
        check(picture([answer]))
    with place.client() as client:
        replicas = client.get("/v1/actscope/info").json()["replicas"]
    assert [replica["replica"] for replica in replicas] == [0, 1]
    assert all(replica["ring"]["rows"] > 0 for replica in replicas)
