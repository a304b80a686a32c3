"""The gateway: an OpenAI-compatible reverse proxy that adds live probe scores to every token.

`create_app` makes the ASGI application, `serve` runs it. docs/wire.md describes the protocol.
The exported names load on first use, so importing the package loads no web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.gateway.app import create_app
    from actscope.gateway.server import GatewayServer, open_server, serve
    from actscope.gateway.settings import GatewaySettings
    from actscope.gateway.upstream.upstream import Upstream

__all__ = ["GatewayServer", "GatewaySettings", "Upstream", "create_app", "open_server", "serve"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "GatewayServer": "actscope.gateway.server:GatewayServer",
        "GatewaySettings": "actscope.gateway.settings:GatewaySettings",
        "Upstream": "actscope.gateway.upstream.upstream:Upstream",
        "create_app": "actscope.gateway.app:create_app",
        "open_server": "actscope.gateway.server:open_server",
        "serve": "actscope.gateway.server:serve",
    },
)
