"""actscope serve: a transformers model behind the gateway."""

from __future__ import annotations

from typing import Annotated

from actscope.cli.common import options
from actscope.cli.common.settings_options import Given, with_settings


@with_settings
def serve(
    model: options.Model,
    engine_flags: Annotated[Given, options.ENGINE],
    gateway_flags: Annotated[
        Given,
        options.GATEWAY.only(
            "host", "port", "token", "scrape_token", "otlp_endpoint", "allowed_hosts", "cors_origins", *options.LIMITS
        ),
    ],
    browser: options.Browser = False,
) -> None:
    """Serve a transformers model with live probes: an OpenAI-compatible API and the scope page, on one port.

    Without --probes, the engine loads the probes in ./probes/MODEL, else those shipped with the model, else it trains some on the
    built-in text (once; they are cached).

    With --record, a flight recorder holds the recent rows of --record-sites, up to --keep-recent and --keep-minutes. A mark
    writes a request to the recording, with its history and its later rows. Marks come from `actscope mark`, the page, a
    --trigger or --sample. Unmarked rows expire.

    Example: actscope serve Qwen/Qwen2-0.5B-Instruct --probes my-probes
    """
    from actscope.cli.common import servers
    from actscope.cli.common.packages import require_engine

    require_engine(model)
    engine = servers.engine_settings(model, engine_flags)
    gateway = options.GATEWAY.make(gateway_flags, upstream=engine.card_id)
    servers.serve(engine, gateway, browser=browser)
