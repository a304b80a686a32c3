"""What people bring along from older tools: their environment variables as settings, and their worker's class.

Each variable that is set is named in the log once, with the setting that it stands for, or with why it has no effect.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger("actscope.vllm")

_PREFIX = "VLLM_CAPTURE_"
ENABLED = "VLLM_CAPTURE_ENABLED"
#: Variables of the capture fork, and the settings that they map to.
_CAPTURE = {
    "VLLM_CAPTURE_LAYERS": "row_sites",
    "VLLM_CAPTURE_SAMPLE_RATE": "sample",
    "VLLM_CAPTURE_BUFFER_SIZE_GB": "buffer_gb",
    "VLLM_CAPTURE_COMPRESSION_K": "codec",
    "VLLM_CAPTURE_OUTPUT_DIR": "record",
}
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
#: Folder in which the capture fork kept its results.
RESULTS = Path("results", "activations")
#: Module of the capture fork's worker. It exists in a patched vLLM only.
_FORKED_WORKER = "vllm.v1.worker.gpu_worker_capture"


def settings_of(env: Mapping[str, str], given: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that variables of older tools stand for.

    Args:
        env: Environment variables.
        given: Settings that the user gave under their own names. They take precedence.

    Returns:
        Values by the name of the setting, without those in `given`.
    """
    found = _probes(env)
    capture = {name: text for name, text in sorted(env.items()) if name.startswith(_PREFIX) and text}
    enabled = capture.pop(ENABLED, "").lower()
    unknown = [name for name in capture if name not in _CAPTURE]
    for name in unknown:
        log.warning("%s has no effect: actscope knows %s", name, ", ".join([ENABLED, *_CAPTURE]))
        del capture[name]
    if enabled and enabled not in _ON:
        if enabled not in _OFF:
            log.warning("%s=%s: expected 1 or 0; nothing is captured", ENABLED, enabled)
        if capture:
            log.warning("%s=%s: %s have no effect; ACTSCOPE_RECORD records", ENABLED, enabled, ", ".join(capture))
        return _without(found, given)
    found |= {name: (_CAPTURE[name], _captured(name, text)) for name, text in capture.items()}
    settings = _without(found, given)
    if enabled:
        settings = _everything(given) | settings
        _tell_recording(settings | dict(given))
    elif capture and not (settings | dict(given)).get("record"):
        log.warning("nothing is recorded yet: set %s=1, or ACTSCOPE_RECORD to a new folder", ENABLED)
    return settings


def _probes(env: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    if layer := env.get("TARGET_LAYER"):
        found["TARGET_LAYER"] = ("sites", layer)
    if model := env.get("PROBE_MODEL"):
        found["PROBE_MODEL"] = ("probes", (str(_directory_of(model)),))
    return found


def _directory_of(model: str) -> Path:
    """Return the first folder of a model's probes that exists, else the one in which they are expected here."""
    last = model.strip("/").rpartition("/")[2]
    places = [Path(root, name) for root in ("src/probes", "probes") for name in (model.strip("/"), last)]
    found = next((place for place in dict.fromkeys(places) if place.is_dir()), None)
    if found is None:
        looked = ", ".join(map(str, dict.fromkeys(places)))
        log.warning("PROBE_MODEL=%s: there is none of %s in %s", model, looked, Path.cwd())
    return found or Path("probes", model.strip("/"))


def _captured(variable: str, text: str) -> object:
    if variable != "VLLM_CAPTURE_COMPRESSION_K":
        return text
    return f"svd:{text}" if text.isdecimal() and int(text) else "lossless"


def _without(found: Mapping[str, tuple[str, object]], given: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that are not given under their own names. Name every variable in the log."""
    settings: dict[str, object] = {}
    for variable, (name, value) in found.items():
        shown = value[0] if isinstance(value, tuple) else value
        if name in given:
            log.warning(
                "%s has no effect: ACTSCOPE_%s, or its key in additional_config, is set", variable, name.upper()
            )
            continue
        settings[name] = value
        log.warning("%s is understood; here it is called ACTSCOPE_%s=%s", variable, name.upper(), shown)
    layer = str(settings.get("sites", ""))
    if "TARGET_LAYER" in found and layer.isdecimal() and "probe_site" not in given:
        settings["probe_site"] = f"layers.{int(layer)}.resid_post"
    return settings


def _everything(given: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a capture of everything, to a new folder: one recording has one set of sites."""
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}.acts"
    everything = {"record": str((RESULTS / name).absolute()), "row_sites": "all", "sample": "1"}
    return {key: value for key, value in everything.items() if key not in given}


def _tell_recording(settings: Mapping[str, object]) -> None:
    if not settings["record"]:
        log.warning("%s has no effect: `record` is set to nothing", ENABLED)
        return
    log.warning(
        "%s is understood: requests (a share of %s) are recorded at layers %s to %s; here it is called ACTSCOPE_RECORD=%s with "
        "ACTSCOPE_ROW_SITES and ACTSCOPE_SAMPLE; actscope info %s shows it",
        ENABLED, settings["sample"], settings["row_sites"], settings["record"], settings["record"], settings["record"],
    )  # fmt: skip


def replaced_worker(worker_cls: object) -> bool:
    """Return whether this is the worker's class of the capture fork, which this vLLM lacks. Says so in the log.

    The plugin reads rows in vLLM's own worker, so the argument can be ignored.
    """
    if not str(worker_cls).startswith(f"{_FORKED_WORKER}."):
        return False
    if find_spec(_FORKED_WORKER) is not None:
        log.warning("worker_cls=%r: rows are also read by actscope's plugin, in that worker", worker_cls)
        return False
    log.warning(
        "worker_cls=%r is not part of this vLLM and is ignored: actscope's plugin reads rows in vLLM's own worker; leave it out, "
        "and enforce_eager too",
        worker_cls,
    )
    return True
