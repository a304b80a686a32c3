"""The page's typed client is generated from the gateway's current OpenAPI document."""

from __future__ import annotations

from pathlib import Path

from actscope.gateway.__main__ import text


def test_the_openapi_that_the_page_is_built_from_is_the_gateways_own() -> None:
    """When this fails: `make api`, and look at what changed."""
    assert (Path(__file__).parents[2] / "web/openapi.json").read_text() == text()
