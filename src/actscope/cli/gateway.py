"""actscope gateway: the gateway alone, in front of an engine that runs already."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.servers import announce


def gateway(
    upstream: Annotated[
        str,
        typer.Option(
            help="vLLM's http://host:port, an engine's card id, or unix:/path; the newest engine here by default."
        ),
    ] = "",
    upstream_key: Annotated[
        str, typer.Option(help="API key of that server, sent nowhere else.", envvar="ACTSCOPE_UPSTREAM_KEY")
    ] = "",
    host: options.Host = "127.0.0.1",
    port: options.Port = 6969,
    token: options.Token = "",
    allow_host: options.AllowHost = None,
    cors_origin: options.CorsOrigin = None,
    browser: options.Browser = False,
) -> None:
    """Put the gateway and the scope in front of an engine. Waits for the engine, and again when it restarts.

    A vLLM server that runs with actscope's plugin is named by its address; one without it is proxied, without scores.

    Example: actscope gateway --upstream http://localhost:8000
    """
    from actscope.gateway.server import serve

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("actscope").setLevel(logging.INFO)
    settings = options.gateway_settings(host, port, token, allow_host, cors_origin, upstream)
    settings = replace(settings, upstream_key=upstream_key)
    serve(settings, lambda taken: announce(taken, upstream or "the newest engine", browser=browser))
