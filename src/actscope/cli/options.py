"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from actscope.gateway.settings import GatewaySettings

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]
Token = Annotated[
    str, typer.Option(help="Token that clients must present.", envvar="ACTSCOPE_TOKEN", show_default="a new one")
]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="Accept this Host header too, e.g. my-box:6969; may be repeated.")
]
CorsOrigin = Annotated[list[str] | None, typer.Option(help="Let pages of this origin call the API; may be repeated.")]
Probes = Annotated[list[Path] | None, typer.Option(help="Directory of probe files; may be repeated.")]
TrainProbes = Annotated[bool, typer.Option(help="With no probes at hand, train some on the built-in text first.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Threads = Annotated[int, typer.Option(help="CPU threads of the model; 0 leaves it to torch.")]
Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]


def gateway_settings(
    host: str, port: int, token: str, allow_host: list[str] | None, cors_origin: list[str] | None, upstream: str
) -> GatewaySettings:
    """Gateway settings from what was given on the command line; what was not keeps its default."""
    settings = GatewaySettings(
        host=host,
        port=port,
        allowed_hosts=tuple(allow_host or ()),
        cors_origins=tuple(cors_origin or ()),
        upstream=upstream,
    )
    return replace(settings, token=token) if token else settings


def can_show_a_browser() -> bool:
    """Whether this session has a screen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.uname().sysname == "Darwin")
