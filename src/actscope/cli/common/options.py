"""Options that several commands share, and the flags that are made from settings."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from actscope.analysis.options import AnalysisOptions, GraphOptions, SiteOptions
from actscope.capture.config import CaptureConfig
from actscope.cli.common.settings_options import Flag, Flags
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.replay.settings import ReplaySettings
from actscope.feed.settings import FeedSettings
from actscope.gateway.settings import GatewaySettings
from actscope.harvest.settings import HarvestSettings
from actscope.metrics.settings import CollectSettings, OutputSettings, WaitSettings
from actscope.recording.export.options import ExportOptions
from actscope.recording.importing.options import ImportOptions
from actscope.sizes import parse_bytes, parse_count

Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]
Engine = Annotated[
    str, typer.Option("--engine", metavar="ID", help="Card id of the engine. By default the newest that runs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."
    ),
]


def _minutes(text: str) -> float:
    return 60 * float(text)


def _mebibytes(text: str) -> int:
    return parse_count(text) << 20


def _count_or_all(text: str) -> int | None:
    return parse_count(text) or None


#: Limits of the gateway, which `serve` and `gateway` take as flags and as variables `ACTSCOPE_<NAME>`.
LIMITS = (
    "max_in_flight",
    "max_streams",
    "max_n",
    "max_body_bytes",
    "max_head_bytes",
    "max_unauthenticated",
    "head_seconds",
    "body_seconds",
)

_SERVING = {"allowed_hosts": Flag("--allow-host", "HOST"), "cors_origins": Flag("--cors-origin", "ORIGIN")}

GATEWAY = Flags(
    GatewaySettings,
    {
        **_SERVING,
        "host": Flag(metavar="ADDRESS"),
        "token": Flag(default="a new one", env="ACTSCOPE_TOKEN"),
        "scrape_token": Flag(metavar="TOKEN", env="ACTSCOPE_SCRAPE_TOKEN"),
        "otlp_endpoint": Flag(metavar="URL", env="ACTSCOPE_OTLP_ENDPOINT"),
        "upstream": Flag(metavar="ENGINE"),
        "upstream_key": Flag(metavar="KEY", env="ACTSCOPE_UPSTREAM_KEY"),
        **{name: Flag(env=f"ACTSCOPE_{name.upper()}") for name in LIMITS},
    },
)
ENGINE = Flags(
    EngineSettings,
    {
        "probes": Flag(metavar="DIR"),
        "device": Flag(metavar="DEVICE"),
        "dtype": Flag(metavar="DTYPE"),
        "record": Flag(metavar="DIR"),
        "record_sites": Flag(metavar="SITES"),
        "record_codec": Flag(metavar="CODEC"),
        "flight_bytes": Flag("--keep-recent"),
        "flight_seconds": Flag("--keep-minutes", "MINUTES", _minutes, "0"),
        "flight_dir": Flag("--keep-on-disk", "DIR"),
        "triggers": Flag("--trigger", "RULE"),
    },
    without=("model", "card_id", "owned"),
)
FEED = Flags(
    FeedSettings,
    {
        **_SERVING,
        "host": Flag(metavar="ADDRESS"),
        "token": Flag(default="a new one"),
        "scrape_token": Flag(metavar="TOKEN"),
        "model": Flag(metavar="MODEL"),
        "dataset": Flag(metavar="DATA"),
        "split": Flag(metavar="NAME"),
        "column": Flag(metavar="NAME"),
        "sites": Flag(metavar="SITES"),
        "device": Flag(metavar="DEVICE"),
        "buffer_rows": Flag(metavar="SIZE", read=str),
        "resume": Flag(metavar="POSITION"),
        "state": Flag(metavar="FILE"),
    },
    variables="ACTSCOPE_FEED_",
)
HARVEST = Flags(
    HarvestSettings,
    {
        "model": Flag(metavar="MODEL"),
        "dataset": Flag(metavar="DATA"),
        "split": Flag(metavar="NAME"),
        "column": Flag(metavar="NAME"),
        "sites": Flag(metavar="SITES"),
        "texts": Flag(read=_count_or_all),
        "tokens": Flag(read=_count_or_all),
        "device": Flag(metavar="DEVICE"),
    },
)
CAPTURE = Flags(
    CaptureConfig,
    {
        "sites": Flag(metavar="SITES"),
        "points": Flag("--point", "POINT"),
        "codec": Flag(metavar="CODEC"),
        "memory_bytes": Flag("--memory"),
        "throughput": Flag(metavar="SIZE", read=parse_bytes, default=0),
    },
    without=("reason",),
)
REPLAY = Flags(ReplaySettings, {"requests": Flag("--request", "ID")})
EXPORT = Flags(ExportOptions, {"shard_bytes": Flag("--shard-mib", "MIB", _mebibytes, "5120")})
IMPORT = Flags(ImportOptions, {"sites": Flag(metavar="PATTERN"), "codec": Flag(metavar="CODEC")})
ANALYSIS = Flags(AnalysisOptions, {"features": Flag(metavar="PATH")}, without=("sites", "site", "graph_options"))
SITE = Flags(SiteOptions)
GRAPH = Flags(GraphOptions, {"lags": Flag("--lag")})
COLLECT = Flags(CollectSettings, {"interval": Flag(metavar="SECONDS")})
WAITS = Flags(WaitSettings, {"pid": Flag(metavar="PID"), "stacks_over": Flag(metavar="MS")})
OUTPUT = Flags(OutputSettings, {"output": Flag(metavar="FILE"), "rotate_bytes": Flag("--rotate")})


def can_show_a_browser() -> bool:
    """Return whether this session has a screen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.uname().sysname == "Darwin")
