"""actscope doctor: checks of this machine, with a remedy for each problem."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.findings import Finding
from actscope.cli.common.output import show
from actscope.cli.common.packages import require_model
from actscope.cli.doctor import counters as doctor_counters
from actscope.cli.doctor import ground
from actscope.cli.doctor import model as doctor_model
from actscope.cli.doctor import vllm as doctor_vllm
from actscope.cli.doctor.ground import guarded, guarded_all, told_once
from actscope.errors import ActscopeError
from actscope.extras import EXTRAS, MODEL, RECORDING, SERVER, missing
from actscope.runtime.printable import paragraph
from actscope.runtime.writable import can_create


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            help="Check this model instead: Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin; "
            "or the running gateway or vLLM server at this address."
        ),
    ] = "",
    token: Annotated[
        str,
        typer.Option("--token", metavar="TOKEN", envvar="ACTSCOPE_TOKEN", help="Token of the server at an address."),
    ] = "",
    as_json: options.Json = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint of MODEL brings along.")
    ] = False,
) -> None:
    """Check what works on this machine, and print a remedy for each problem. Exits 1 when a check is marked NO.

    With MODEL, run the model once over a few random tokens, hold every point against that pass, and print where each is read. A
    point that is not what its name says is refused everywhere, and a NO here.

    With an address, print what a running gateway, or a vLLM server on this machine, has counted of losses, doubts and faults.
    Without either, what the engines of this user on this machine have.

    Example: actscope doctor google/gemma-2-2b
    """
    if doctor_counters.is_address(model):
        findings = list(doctor_counters.of_server(model, token))
    elif model:
        require_model(model)
        findings = list(doctor_model.check(model, trust_remote_code=trust_remote_code))
    else:
        made = [*(guarded(check) for check in _checks()), *guarded_all(doctor_counters.of_this_machine)]
        findings = told_once(made)
    if as_json:
        show(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for f in findings:
            said = paragraph(f"{'ok  ' if f.ok else 'NO  '} {f.what:<16} {f.found}", " " * 22)
            show(f"{said}\n      -> {paragraph(f.remedy, ' ' * 9)}" if f.remedy else said)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


_VLLM = (doctor_vllm.vllm, doctor_vllm.plugin, doctor_vllm.engines)


def _checks() -> tuple[Callable[[], Finding], ...]:
    services = (_python, _engine, _gateway, _probes, _recordings, _exports, _analysis, _feed, _direct)
    return (*services, _page, _shared_memory, *ground.CHECKS, _gpu, _engines, *_VLLM)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "Python", sys.version_info >= (3, 11), found, "" if sys.version_info >= (3, 11) else "install 3.11 or newer"
    )


def _extra(what: str, extra: str, *modules: str) -> Callable[[], Finding]:
    """Return a check whether the modules of an extra are installed. Never a NO: no installation needs all extras."""

    def check() -> Finding:
        absent = missing(*dict.fromkeys(modules))
        if not absent:
            return Finding(what, True, ", ".join(dict.fromkeys(modules)))
        return Finding(what, True, f"not installed: {', '.join(absent)}", f"pip install 'actscope[{extra}]'")

    return check


_engine = _extra("HF engine", "hf", *MODEL, *SERVER)
_gateway = _extra("gateway", "gateway", *SERVER)
_probes = _extra("probe training", "hf", "torch", "sklearn")
_recordings = _extra("recordings", "record", *RECORDING)
_exports = _extra("zarr, parquet", "export", *EXTRAS["export"])
_analysis = _extra("plots, graphs", "analyze", *EXTRAS["analyze"])
_feed = _extra("datasets", "feed", *EXTRAS["feed"])


def _direct() -> Finding:
    """Check whether recordings made in the current directory bypass the page cache (O_DIRECT). Never a NO."""
    if missing(*RECORDING):
        return Finding("direct writes", True, "not checked: the extra for recordings is not installed")
    from actscope.store.writing.segment_file import choose_direct

    try:
        direct, why = choose_direct(Path.cwd(), "auto")
    except (ActscopeError, FileNotFoundError) as error:
        return Finding("direct writes", True, f"not in this directory: {error}", "record into a writable directory")
    return Finding("direct writes", True, f"{'yes' if direct else 'no, buffered'}: {why}")


def _page() -> Finding:
    from actscope.gateway.settings import STATIC

    built = (STATIC / "index.html").is_file()
    return Finding("scope page", built, "built" if built else "not built", "" if built else "make page")


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free >> 20
    except OSError as error:
        return Finding("shared memory", False, f"{error.filename}: {error.strerror}", "mount a tmpfs at /dev/shm")
    if not can_create(Path("/dev/shm")):
        return Finding(
            "shared memory", False, "/dev/shm can only be read", "mount a tmpfs at /dev/shm that this user can write to"
        )
    return Finding(
        "shared memory",
        free >= 64,
        f"{free} MiB free in /dev/shm",
        "" if free >= 64 else "free or add space: at least 64 MiB",
    )


def _gpu() -> Finding:
    if missing("torch"):
        return Finding("GPU", True, "not checked: torch is not installed")
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the CPU is used"
    return Finding("GPU", True, f"{found} (torch {torch.__version__}, {os.cpu_count()} cores)")


def _engines() -> Finding:
    from actscope.ring.discovery import read_cards

    cards = read_cards()
    return Finding("engines running", True, ", ".join(f"{c.id} ({c.model})" for c in cards) or "none")
