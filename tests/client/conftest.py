"""The built-in model behind `actscope serve`, for all tests of the client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from support.gateway.stage import Place
from support.servers import serving

from actscope import client as scored
from actscope.client import ScoredOpenAI


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    with serving() as running:
        yield running.place


@pytest.fixture
def plain(place: Place) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as client:
        yield client


@pytest.fixture
def client(plain: openai.OpenAI) -> ScoredOpenAI:
    return scored.wrap(plain)
