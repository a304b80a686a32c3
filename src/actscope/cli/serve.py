"""actscope serve: a transformers model behind the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope.cli.common import options, servers


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
    record: options.Record = None,
    record_sites: options.RecordSites = "first,middle,last",
    record_codec: options.RecordCodec = "lossless",
    keep_recent: options.KeepRecent = "1GB",
    keep_minutes: options.KeepMinutes = 0.0,
    keep_on_disk: options.KeepOnDisk = None,
    trigger: options.Trigger = None,
    sample: options.Sample = 0.0,
    browser: options.Browser = False,
) -> None:
    """Serve a transformers model with live probes: an OpenAI-compatible API and the scope, on one port.

    Probes are read from --probes, else from ./probes/MODEL, else the ones that came with the model are used, else some are
    trained on the built-in text (once; they are kept).

    With --record, the rows of --record-sites of everything recent stay at hand (up to --keep-recent and --keep-minutes).
    What is marked, by `actscope mark`, the page, a --trigger or --sample, goes to the recording with its history; the rest
    is forgotten.

    Example: actscope serve Qwen/Qwen2-0.5B-Instruct --probes my-probes
    """
    recording = options.recording_settings(
        record, record_sites, record_codec, keep_recent, keep_minutes, keep_on_disk, trigger, sample
    )
    engine = servers.engine_settings(
        model,
        probes,
        device=device,
        dtype=dtype,
        threads=threads,
        train_probes=train_probes,
        recording=recording,
    )
    gateway = options.gateway_settings(host, port, token, allow_host, cors_origin, engine.card_id)
    servers.serve(engine, gateway, browser=browser)
