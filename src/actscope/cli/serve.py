"""actscope serve: a transformers model behind the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope.cli import options, running


def serve(
    model: Annotated[str, typer.Argument(help="Hugging Face id, a local directory, or actscope/builtin.")],
    probes: options.Probes = None,
    train_probes: options.TrainProbes = True,
    host: options.Host = "127.0.0.1",
    port: options.Port = 6969,
    token: options.Token = "",
    allow_host: options.AllowHost = None,
    cors_origin: options.CorsOrigin = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    browser: options.Browser = False,
) -> None:
    """Serve a transformers model with live probes: an OpenAI-compatible API and the scope, on one port.

    Probes are read from --probes, else from ./probes/MODEL, else the ones that came with the model are used, else some are
    trained on the built-in text (once; they are kept).

    Example: actscope serve Qwen/Qwen2-0.5B-Instruct --probes my-probes
    """
    engine = running.engine_settings(
        model, probes, device=device, dtype=dtype, threads=threads, train_probes=train_probes
    )
    gateway = options.gateway_settings(host, port, token, allow_host, cors_origin, engine.card_id)
    running.serve(engine, gateway, browser=browser)
