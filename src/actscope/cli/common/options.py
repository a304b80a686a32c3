"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from actscope.errors import SettingsError
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
Record = Annotated[
    Path | None,
    typer.Option(help="Keep marked requests in this recording; it is made, or goes on.", metavar="DIR"),
]
RecordSites = Annotated[str, typer.Option(help="With --record: sites, e.g. '0,7', 'first,middle,last', 'all'.")]
RecordCodec = Annotated[str, typer.Option(help="With --record: lossless, error_bounded:1e-3, svd:256, zstd, none …")]
KeepRecent = Annotated[str, typer.Option(help="With --record: so much stays at hand, to be marked afterwards.")]
KeepMinutes = Annotated[float, typer.Option(help="With --record: forget what is older; 0 sets no limit.")]
KeepOnDisk = Annotated[
    Path | None,
    typer.Option(help="With --record: hold what is recent in this private directory, not in memory.", metavar="DIR"),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option(help="With --record: a rule that marks, e.g. 'probe danger > 3.2 before 20 tokens'; may be repeated."),
]
Sample = Annotated[float, typer.Option(help="With --record: keep this share of all requests, chosen by their ids.")]
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


def recording_settings(
    record: Path | None,
    sites: str,
    codec: str,
    recent: str,
    minutes: float,
    on_disk: Path | None,
    trigger: list[str] | None,
    sample: float,
) -> dict[str, Any]:
    """The engine's settings for recording, checked as far as that goes without the model. Raises SettingsError, CodecError."""
    if record is None:
        if trigger or sample or on_disk:
            raise SettingsError(
                "--trigger, --sample and --keep-on-disk keep rows in a recording: say where with --record"
            )
        return {}
    from actscope.codecs import encoder
    from actscope.recording.flight.history import FlightOptions
    from actscope.recording.flight.triggers import parse_rule
    from actscope.sizes import parse_bytes

    encoder(codec)
    for text in (*(trigger or ()), f"sample {sample}"):
        parse_rule(text)
    flight = FlightOptions(parse_bytes(recent), minutes * 60, str(on_disk.resolve()) if on_disk else "")
    return {
        "record": str(record.resolve()),
        "record_sites": sites,
        "record_codec": codec,
        "flight_bytes": flight.bytes,
        "flight_seconds": flight.seconds,
        "flight_dir": flight.directory,
        "triggers": tuple(trigger or ()),
        "sample": sample,
    }


def can_show_a_browser() -> bool:
    """Whether this session has a screen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.uname().sysname == "Darwin")
