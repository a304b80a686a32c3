"""actscope gateway: the gateway alone, in front of an engine that runs already."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope.cli import options
from actscope.cli.running import announce


def gateway(
    upstream: Annotated[
        str, typer.Option(help="An engine's card id or unix:/path; the newest engine that runs here if not given.")
    ] = "",
    host: options.Host = "127.0.0.1",
    port: options.Port = 6969,
    token: options.Token = "",
    allow_host: options.AllowHost = None,
    cors_origin: options.CorsOrigin = None,
    browser: options.Browser = False,
) -> None:
    """Put the gateway and the scope in front of an engine. Waits for the engine, and again when it restarts.

    Example: actscope gateway --port 7000 --cors-origin http://localhost:5173
    """
    from actscope.gateway.server import serve

    settings = options.gateway_settings(host, port, token, allow_host, cors_origin, upstream)
    serve(settings, lambda taken: announce(taken, upstream or "the newest engine", browser=browser))
