"""`python -m actscope.gateway` prints the OpenAPI document, from which the page's typed client is generated."""

from __future__ import annotations

import json

from actscope.gateway.app import create_app
from actscope.gateway.settings import GatewaySettings


def text() -> str:
    """Return the OpenAPI document of a gateway with default settings, in the form of web/openapi.json."""
    return json.dumps(create_app(GatewaySettings()).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
