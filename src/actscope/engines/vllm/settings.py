"""Plugin settings, read from `--additional-config`, ACTSCOPE_* variables and the variables of older tools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from actscope._version import __version__
from actscope.engines.vllm import older_tools
from actscope.errors import SettingsError
from actscope.near_miss import hint
from actscope.runtime.decoding import decode_json
from actscope.sites import Site

#: Key of vLLM's `additional_config` for our settings; also carries the GraphSpec to the other processes.
KEY = "actscope"
#: Raised when hooks put something else into the graph for the same settings: a graph compiled before must not be used then.
_GRAPH = 2
#: Environment variable that carries all settings from the first process to the others.
CARRIER = "ACTSCOPE_VLLM_SETTINGS"
#: Environment variable that carries the number of data-parallel engines, which vLLM does not tell the engines of a dense model.
REPLICAS = "ACTSCOPE_VLLM_REPLICAS"


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that the compiled graph depends on. They join vLLM's compile cache key, so no other setting may be here."""

    computed: ClassVar[tuple[str, ...]] = ("sae_print", "version")

    sites: str = "all"
    """As in VllmSettings, like the next five."""
    row_sites: str = ""
    width: Annotated[int, Meta(ge=1, le=1024)] = 64
    sae: str = ""
    sae_site: str = ""
    sae_top_k: Annotated[int, Meta(ge=1, le=256)] = 32
    sae_print: str = ""
    """Changes when the SAE's files do."""
    version: str = f"{__version__}, graph {_GRAPH}"
    """Changes when actscope's ops or hooks do, since they are in the graph."""


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the plugin. Unknown keys are refused.

    Each can be given as `{"actscope": {...}}` in `--additional-config`, or as the variable ACTSCOPE_<NAME>. Changing one of the
    first six settings recompiles the model.

    Raises:
        ValueError: `record`, `probes` or `triggers` is set while `sidecar` is False, or `probe_site` is no site.
    """

    sites: str = "all"
    """Sites where scores can be read. A probe at another site is refused."""
    row_sites: str = ""
    """Sites where raw rows can be recorded. By default none, and first,middle,last with `record`."""
    width: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Maximum number of probes at a time."""
    sae: str = ""
    """File or folder of an SAE whose strongest features are computed for every token (SAELens, Gemma Scope, Llama Scope, sparsify
    …, as safetensors or npz)."""
    sae_site: str = ""
    """Site of the SAE. By default the one that its files name."""
    sae_top_k: Annotated[int, Meta(ge=1, le=256)] = 32
    """Number of features per token."""
    probes: tuple[str, ...] = ()
    """Directories of probe files to load at start, separated by `;`. By default probes/MODEL, if it exists."""
    probe_site: str = ""
    """Site of the JSON probe files that name none, neither inside nor as enc_<layer>_<name>.json, e.g. layers.19.resid_post."""
    model_name: str = ""
    """The model's name in probe files, if it is not the name or path that vLLM loaded the model from."""
    ring_rows: Annotated[int, Meta(ge=256, le=1 << 24)] = 65536
    """Capacity of the score ring: the number of rows that a reader may lag behind."""
    prefix_scores: bool = True
    """Keep the scores of cached prompt blocks, so that a repeated prompt still shows them."""
    record: str = ""
    """Recording to which marked requests are written. By default none."""
    rows: Annotated[str, Meta(pattern="^(all|asked)$")] = "all"
    """Requests whose raw rows leave the model's process: all, or only those that asked."""
    sample: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Fraction of all requests to mark, 0 to 1, selected by a hash of their ids."""
    codec: str = "lossless"
    """Codec of the recorded rows, e.g. lossless, error_bounded:1e-3, svd:256, zstd or none."""
    triggers: tuple[str, ...] = ()
    """Rules that mark requests, separated by `;`, e.g. `probe danger > 3.2 before 20 tokens`."""
    flight_gb: Annotated[float, Meta(gt=0)] = 1.0
    """Size of the flight recorder in GB (1e9 bytes). It holds recent rows until they are marked or expire."""
    flight_seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Maximum age of rows in the flight recorder. 0: no limit."""
    flight_dir: str = ""
    """Private directory for the rows of the flight recorder. By default they stay in memory."""
    buffer_gb: Annotated[float, Meta(gt=0)] = 2.0
    """Maximum shared memory between the model's process and the recorder, in GB (1e9 bytes). When it is full, rows are dropped
    and counted."""
    sidecar: bool = True
    """Start the process that loads probes and records. Without it no engine card is published, and raw rows of four passes stay
    in shared memory for the program that drives the engine (`actscope.extraction.vllm.reader`)."""

    def __post_init__(self) -> None:
        needs = [name for name in ("record", "probes", "triggers") if getattr(self, name)]
        if needs and not self.sidecar:
            raise ValueError(f"{', '.join(needs)}: needs the sidecar; leave sidecar on")
        if self.probe_site:
            Site.parse(self.probe_site)

    @property
    def graph(self) -> GraphSpec:
        """The settings that the graph depends on. A recording without `row_sites` keeps three layers."""
        row_sites = self.row_sites or ("first,middle,last" if self.record else "")
        return GraphSpec(
            sites=self.sites,
            row_sites=row_sites,
            width=self.width,
            sae=self.sae,
            sae_site=self.sae_site,
            sae_top_k=self.sae_top_k,
            sae_print=_print_of(Path(self.sae)) if self.sae else "",
        )


def _print_of(path: Path) -> str:
    """Return a text that changes when a file does: the SAE's shape and activation are constants of the graph."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return ";".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file())


def disabled(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether ACTSCOPE_DISABLE turns the plugin off."""
    return env.get("ACTSCOPE_DISABLE", "") not in ("", "0")


def read_settings(config: Mapping[str, object], env: Mapping[str, str] = os.environ) -> VllmSettings:
    """Return the settings. `config` takes precedence over the environment, which takes precedence over defaults.

    Args:
        config: The value of `additional_config["actscope"]`.
        env: Environment variables.

    Raises:
        SettingsError: A setting is unknown or cannot be read; the message names it.
    """
    known = VllmSettings.__struct_fields__
    for name in config.keys() - set(known):
        near = f"{hint(name, known)}; settings are {', '.join(known)}"
        raise SettingsError(f"actscope settings for vLLM: there is no setting {name!r}{near}")
    given = {**_own(env), **config}
    found = {**older_tools.settings_of(env, given), **given}
    try:
        return msgspec.convert(found, VllmSettings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"actscope settings for vLLM: {error}; settings are {', '.join(known)}") from error


def _own(env: Mapping[str, str]) -> dict[str, object]:
    named = {name: env[f"ACTSCOPE_{name.upper()}"] for name in VllmSettings.__struct_fields__ if _is_set(env, name)}
    return {name: _several(text) if name in ("probes", "triggers") else text for name, text in named.items()}


def _is_set(env: Mapping[str, str], name: str) -> bool:
    return bool(env.get(f"ACTSCOPE_{name.upper()}"))


def _several(text: str) -> tuple[str, ...]:
    """Parse a list from one variable: JSON, or parts separated by semicolons."""
    if text.startswith("["):
        return decode_json(text, tuple[str, ...], SettingsError, f"{text!r} is no JSON list of texts")
    return tuple(part.strip() for part in text.split(";") if part.strip())
