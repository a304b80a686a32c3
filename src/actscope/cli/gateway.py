"""actscope gateway: run the gateway alone, in front of a running engine."""

from __future__ import annotations

import logging
from typing import Annotated

from actscope.cli.common import options
from actscope.cli.common.settings_options import Given, with_settings
from actscope.extras import require
from actscope.runtime.directory import runtime_dir


@with_settings
def gateway(flags: Annotated[Given, options.GATEWAY], browser: options.Browser = False) -> None:
    """Put the gateway and the scope page in front of an engine. Waits for the engine, also when it restarts.

    Name a vLLM server by its URL. With actscope's plugin its answers have scores; without it they are forwarded as they are.

    Example: actscope gateway --upstream http://localhost:8000
    """
    require("gateway")
    from actscope.cli.common.servers import announce
    from actscope.gateway.server import serve

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("actscope").setLevel(logging.INFO)
    settings = options.GATEWAY.make(flags)
    if not settings.upstream.startswith(("http://", "https://", "unix:")):
        runtime_dir()  # an engine is found in it: refuse one that is not private now, instead of waiting for ever
    serve(settings, lambda taken: announce(taken, settings.upstream or "the newest engine", browser=browser))
