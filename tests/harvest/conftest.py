"""Places to harvest to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harvest.s3 import ENVIRONMENT, S3Server


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    found = S3Server()
    yield found
    found.stop()


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket, and the environment that leads to it."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    return server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of either kind."""
    return str(tmp_path / "rows") if request.param == "local" else f"{request.getfixturevalue('bucket')}/some/prefix"
