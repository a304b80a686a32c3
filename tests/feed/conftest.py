"""One feed for the tests that only take rows from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.feed.feeding import Feeding, feeding
from support.feed.known import Known, known

TEXTS, CONTEXT = 60, 64


@pytest.fixture(scope="session")
def rows() -> Known:
    """The rows of layers 1 and 2 of the first texts."""
    return known(TEXTS, CONTEXT, (1, 2))


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feeding]:
    """An endless feed of two sites, with rows; each test takes as a group of its own, which must not hold the others up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path_factory.mktemp("run", numbered=True)))
        with feeding(sites="1,2", group_seconds=0.2) as running:
            with running.client() as client:
                client.wait_for_data(2000)
            yield running
