"""Facts of a model before it is loaded: its width, its number of blocks, and the size of its weights.

They come from the config and the headers of the weight files. No weights are read, and torch is imported only if a config leaves
out its architecture's defaults. For a hub model that is not in the local cache, two short requests fetch the config and the
number of parameters; nothing else is downloaded.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from actscope.engines.local.names import NAMES, directory_of
from actscope.errors import MissingExtra, SettingsError
from actscope.feed.settings import ITEM_BYTES
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.regular_files import open_regular, read_regular

_WIDTHS = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_TIMEOUT_S = 5.0
_MAX_HEAD = 100 << 20  # of a safetensors file; the limit of the format's own reader
_MAX_JSON = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of a model.

    Attributes:
        width: Width of the residual stream.
        n_layers: Number of blocks.
        parameters: Number of parameters; 0 if it is not known.
        context: Longest input, in tokens; 0 if it is not known.
        dtype: dtype of the checkpoint.
        source: Where the facts come from.
    """

    width: int
    n_layers: int
    parameters: int = 0
    context: int = 0
    dtype: str = "float32"
    source: str = "known to this version of actscope"


#: Models of the presets, so that their memory can be estimated without a network.
KNOWN = {
    "Qwen/Qwen3-8B-Base": ModelFacts(4096, 36, 8_190_735_360, 32_768, "bfloat16"),
    "Qwen/Qwen3-32B": ModelFacts(5120, 64, 32_762_123_264, 40_960, "bfloat16"),
}


class Unreachable(SettingsError):
    """Error: the hub does not answer, and the model is not in the local cache."""


def facts_of(model: str) -> ModelFacts:
    """Return the facts of a model.

    Args:
        model: Hub id, local directory, GGUF file, actscope/smollm2 or actscope/builtin.

    Raises:
        SettingsError: There is no such model, or its config is unusable.
        EngineError: It is a GGUF file that cannot be converted.
        Unreachable: The model is not in the local cache, and the hub does not answer.
    """
    directory = _directory_of(model)
    if directory is not None:
        return _of_directory(model, directory)
    try:
        return _of_hub(model)
    except Unreachable:
        if model not in KNOWN:
            raise
        return KNOWN[model]


def _directory_of(model: str) -> Path | None:
    """Return the directory of the model's config on this machine, or None."""
    if (local := directory_of(model)) is not None:
        return local
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise SettingsError(f"model {model!r}: no such directory; expected one, a Hugging Face id, {NAMES}")
    hub = _hub()
    try:
        cached = hub.try_to_load_from_cache(model, "config.json")
    except hub.errors.HFValidationError as error:
        raise SettingsError(f"model {model!r}: neither a directory nor a Hugging Face id: {error}") from error
    return Path(cached).parent if isinstance(cached, str) else None


def _of_directory(model: str, directory: Path) -> ModelFacts:
    path = directory / "config.json"
    try:
        raw = read_regular(path, _MAX_JSON, SettingsError)
    except FileNotFoundError as error:
        raise SettingsError(f"model {model!r}: {path} cannot be read: {error.strerror}") from error
    config = decode_json(raw, object, SettingsError, f"model {model!r}: {path} is not JSON")
    facts = _of_config(model, config, str(directory))
    return replace(facts, parameters=_parameters(directory.glob("*.safetensors")), source=str(path))


def _of_config(model: str, config: Any, place: str) -> ModelFacts:
    whole = config if isinstance(config, dict) else {}
    own: Mapping[str, Any] = _text_part(whole)
    found = [_first(own, names) for names in (_WIDTHS, _LAYERS, _CONTEXTS)]
    if not (found[0] and found[1]):  # a config that leaves out its architecture's defaults
        own = _completed(model, place)
        found = [_first(own, names) for names in (_WIDTHS, _LAYERS, _CONTEXTS)]
    width, n_layers, context = found
    if not (width and n_layers):
        raise SettingsError(f"model {model!r}: its config lacks the width or the number of blocks")
    said = (part.get(name) for part in (own, whole) for name in ("dtype", "torch_dtype"))
    return ModelFacts(width, n_layers, context=context, dtype=next((d for d in said if d in ITEM_BYTES), "float32"))


def _completed(model: str, place: str) -> Mapping[str, Any]:
    """Return the config with its architecture's defaults, from transformers (which imports torch)."""
    try:
        from transformers import AutoConfig
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", error.name or "transformers") from error
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config()
    except Exception as error:  # transformers raises whatever its code meets in a damaged config
        raise SettingsError(f"model {model!r}: its config cannot be read: {error}") from error
    names = (*_WIDTHS, *_LAYERS, *_CONTEXTS)
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the language model: that part of a multimodal model's config, else the whole."""
    inner = next((config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict)), None)
    return config if inner is None else inner


def _first(config: Mapping[str, Any], names: Iterable[str]) -> int:
    found = (config[name] for name in names if isinstance(config.get(name), int))
    return max(0, next(found, 0))


def _parameters(files: Iterable[Path]) -> int:
    """Return the number of parameters in safetensors files, from their headers; 0 if any of them cannot be read."""
    try:
        with as_own_error(SettingsError, "a safetensors header"):
            return sum(_numbers_in(path) for path in files)
    except SettingsError:
        return 0


def _numbers_in(path: Path) -> int:
    with os.fdopen(open_regular(path, SettingsError), "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _MAX_HEAD:
            raise ValueError(f"{path}: a header of {size} bytes")
        tensors = decode_json(file.read(size), dict[str, Any], SettingsError, f"{path}: its header")
    return sum(prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__")


def _of_hub(model: str) -> ModelFacts:
    hub = _hub()
    endpoint = hub.constants.ENDPOINT
    config = _asked(model, f"{endpoint}/{model}/resolve/main/config.json")
    listed = _asked(model, f"{endpoint}/api/models/{model}?expand[]=safetensors")
    numbers = listed.get("safetensors") if isinstance(listed, dict) else None
    total = numbers.get("total", 0) if isinstance(numbers, dict) else 0
    return replace(_of_config(model, config, model), parameters=int(total), source=endpoint)


def _asked(model: str, url: str) -> Any:
    import httpx

    hub = _hub()
    if hub.constants.HF_HUB_OFFLINE:
        raise Unreachable(f"model {model!r}: it is not in the local cache, and HF_HUB_OFFLINE is set")
    try:
        answer = httpx.get(url, headers=hub.utils.build_hf_headers(), follow_redirects=True, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Unreachable(
            f"model {model!r}: it is not in the local cache, and the hub does not answer ({error})"
        ) from error
    if answer.status_code != 200 or len(answer.content) > _MAX_JSON:
        raise _refused(model, answer.status_code)
    try:
        return answer.json()
    except ValueError as error:
        raise SettingsError(f"model {model!r}: {url} is not JSON: {error}") from error


def _refused(model: str, status: int) -> SettingsError:
    if status in (401, 403, 404):  # the hub also answers 401 for a model that does not exist
        return SettingsError(
            f"model {model!r}: the hub answers {status}: there is no such model, or it is gated: check the id, "
            "and for a gated model log in (hf auth login, or HF_TOKEN)"
        )
    return Unreachable(f"model {model!r}: it is not in the local cache, and the hub answers {status}")


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", error.name or "huggingface_hub") from error
    return huggingface_hub
