"""The gateway: an OpenAI-compatible server that adds live probe scores to every token.

`create_app` makes the ASGI application, `serve` runs it. What clients see is in docs/wire.md.
The names load on first use, so that importing the package loads no web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.gateway.app import create_app
    from actscope.gateway.server import GatewayServer, open_server, serve
    from actscope.gateway.settings import GatewaySettings
    from actscope.gateway.upstream.upstream import Upstream

__all__ = ["GatewayServer", "GatewaySettings", "Upstream", "create_app", "open_server", "serve"]

_HOMES = {
    "GatewayServer": "server",
    "GatewaySettings": "settings",
    "Upstream": "upstream.upstream",
    "create_app": "app",
    "open_server": "server",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actscope.gateway' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"actscope.gateway.{_HOMES[name]}"), name)
