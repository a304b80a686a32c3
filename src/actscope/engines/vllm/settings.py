"""What the plugin is to do: from `--additional-config`, from the environment, and from the variables of older tools."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from actscope._version import __version__
from actscope.errors import SettingsError

log = logging.getLogger("actscope.vllm")

#: Key of vLLM's `additional_config` under which users write our settings, and under which the graph's part travels.
KEY = "actscope"
#: Carries the settings that do not change the graph from the first process to all others.
CARRIER = "ACTSCOPE_VLLM_SETTINGS"


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the compiled graph depends on. It is part of vLLM's compile cache key, so nothing else may be.

    `sites` are tapped for scores, `row_sites` for raw rows ("" for none); both are selections. `width` is how many probes
    can be loaded at once. `sae` is a directory or file with an SAE whose strongest `sae_top_k` features are computed at
    `sae_site` for every token; `sae_print` tells one content of it from another. `version` is ours: the ops are in the graph.
    """

    computed: ClassVar[tuple[str, ...]] = ("sae_print", "version")

    sites: str = "all"
    row_sites: str = ""
    width: Annotated[int, Meta(ge=1, le=1024)] = 64
    sae: str = ""
    sae_site: str = ""
    sae_top_k: Annotated[int, Meta(ge=1, le=256)] = 32
    sae_print: str = ""
    version: str = __version__


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the plugin; each can be given as `{"actscope": {...}}` in `--additional-config` or as ACTSCOPE_<NAME>.

    `sites`, `row_sites`, `width`, `sae`, `sae_site`, `sae_top_k`: see GraphSpec; changing them compiles the model again.
    `probes`: directories of probe files, loaded at start (default: `probes/<model>` where that exists).
    `model_name`: what probes call the model, where that is not what vLLM serves it as.
    `ring_rows`: rows of scores that readers may lag behind.
    `prefix_scores`: keep the scores of cached prompt blocks, so that a prompt that comes again still shows them.

    `record`: directory of a recording; marked requests go there. `rows`: whose rows leave the model's process:
    "all" requests', or only of those that "asked". `sample`: a share of requests that is kept, chosen by their ids. `codec`,
    `triggers`, `flight_gb`, `flight_seconds`, `flight_dir`: as for `actscope serve`. `buffer_gb`: shared memory between
    the model's process and the recorder, at most; when it is full, rows are dropped and counted.

    `sidecar`: whether the process that brings probes in and records is started. Without it there is no card either: raw rows
    lie in shared memory, those of four passes, for whoever runs the engine and asks it where (`actscope.extraction.vllm.reader`).
    """

    sites: str = "all"
    row_sites: str = ""
    width: Annotated[int, Meta(ge=1, le=1024)] = 64
    sae: str = ""
    sae_site: str = ""
    sae_top_k: Annotated[int, Meta(ge=1, le=256)] = 32
    probes: tuple[str, ...] = ()
    model_name: str = ""
    ring_rows: Annotated[int, Meta(ge=256, le=1 << 24)] = 65536
    prefix_scores: bool = True
    record: str = ""
    rows: Annotated[str, Meta(pattern="^(all|asked)$")] = "all"
    sample: Annotated[float, Meta(ge=0, le=1)] = 0.0
    codec: str = "lossless"
    triggers: tuple[str, ...] = ()
    flight_gb: Annotated[float, Meta(gt=0)] = 1.0
    flight_seconds: Annotated[float, Meta(ge=0)] = 0.0
    flight_dir: str = ""
    buffer_gb: Annotated[float, Meta(gt=0)] = 2.0
    sidecar: bool = True

    def __post_init__(self) -> None:
        needs = [name for name in ("record", "probes", "triggers") if getattr(self, name)]
        if needs and not self.sidecar:
            raise ValueError(f"{', '.join(needs)}: without a sidecar nobody would see to it")

    @property
    def graph(self) -> GraphSpec:
        """The part that the graph depends on. A recording without `row_sites` keeps three layers."""
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
    """Changes when a file does: its shape, and its activation, are constants of the graph."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return ";".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file())


#: Variables of older tools, and what they are called here.
_LEGACY = {
    "TARGET_LAYER": "sites",
    "PROBE_MODEL": "probes",
    "VLLM_CAPTURE_LAYERS": "row_sites",
    "VLLM_CAPTURE_SAMPLE_RATE": "sample",
    "VLLM_CAPTURE_BUFFER_SIZE_GB": "buffer_gb",
    "VLLM_CAPTURE_COMPRESSION_K": "codec",
    "VLLM_CAPTURE_OUTPUT_DIR": "record",
}
_MEANING = {
    "PROBE_MODEL": lambda text: f"probes/{text}",
    "VLLM_CAPTURE_COMPRESSION_K": lambda text: f"svd:{text}" if text.isdigit() and int(text) else "lossless",
}


def disabled(env: Mapping[str, str] = os.environ) -> bool:
    """Whether ACTSCOPE_DISABLE turns the plugin off."""
    return env.get("ACTSCOPE_DISABLE", "") not in ("", "0")


def read_settings(config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> VllmSettings:
    """The settings: what `config` (the value of `additional_config["actscope"]`) says, else the environment, else defaults.

    Raises SettingsError, naming the setting, for what is unknown or cannot be read.
    """
    found = {**_legacy(env), **_own(env), **config}
    try:
        return msgspec.convert(found, VllmSettings, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(VllmSettings.__struct_fields__)
        raise SettingsError(f"actscope settings for vLLM: {error}; settings are {known}") from error


def _own(env: Mapping[str, str]) -> dict[str, Any]:
    named = {name: env[f"ACTSCOPE_{name.upper()}"] for name in VllmSettings.__struct_fields__ if _is_set(env, name)}
    return {name: _several(text) if name in ("probes", "triggers") else text for name, text in named.items()}


def _is_set(env: Mapping[str, str], name: str) -> bool:
    return bool(env.get(f"ACTSCOPE_{name.upper()}"))


def _several(text: str) -> tuple[str, ...]:
    """A list in one variable: JSON, or parts with semicolons between them."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=tuple[str, ...])
        except msgspec.DecodeError as error:
            raise SettingsError(f"{text!r} is no JSON list of texts: {error}") from error
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _legacy(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, name in _LEGACY.items():
        text = env.get(variable)
        if text:
            value = _MEANING[variable](text) if variable in _MEANING else text
            found[name] = (value,) if name == "probes" else value
            log.warning("%s=%s is understood; here it is called ACTSCOPE_%s=%s", variable, text, name.upper(), value)
    return found
