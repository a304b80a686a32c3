"""Opening a reader of either engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from actscope.errors import MissingExtra, SettingsError
from actscope.extraction.batching import BATCH_TOKENS
from actscope.extraction.contract import Reader

if TYPE_CHECKING:
    from actscope.engines.hf.loading import LoadedModel

EngineName = Literal["hf", "vllm"]
CONTEXT = 512


def open_reader(
    engine: EngineName,
    model: str,
    sites: str,
    *,
    dtype: str = "auto",
    batch_tokens: int = BATCH_TOKENS,
    context: int = CONTEXT,
    device: str = "auto",
    model_dtype: str = "auto",
    threads: int = 0,
) -> Reader:
    """A reader of `model` at `sites`: a selection such as "layers.2.resid_post", "first,middle,last" or a module's path.

    dtype: of the rows; "auto" is what the model computes in, and that is `model_dtype`. context: the longest piece that will be
    read. batch_tokens: tokens of one forward, padding included. threads: on a CPU; 0 is the engine's own choice. device: for
    "hf", where "auto" is a GPU if there is one; vLLM runs where it was installed for. Raises SettingsError, SiteError,
    EngineError, and MissingExtra for an engine that is not installed.
    """
    if engine not in get_args(EngineName):
        raise SettingsError(f"engine {engine!r}: expected one of {', '.join(get_args(EngineName))}")
    if engine == "hf":
        loaded = _load(model, device, model_dtype, context)
        from actscope.extraction.hf import HfReader

        return HfReader(loaded, sites, dtype=dtype, batch_tokens=batch_tokens, threads=threads)
    if device != "auto":
        raise SettingsError(f"device {device!r}: vLLM runs on the device that it was installed for; leave it out")
    from actscope.extraction.vllm.reader import VllmReader

    return VllmReader(
        model, sites, dtype=dtype, batch_tokens=batch_tokens, context=context, threads=threads, model_dtype=model_dtype
    )


def _load(model: str, device: str, model_dtype: str, context: int) -> LoadedModel:
    try:
        from actscope.engines.hf.loading import load
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", error.name or "transformers") from error
    loaded = load(model, device=device, dtype=model_dtype)
    if context > loaded.max_context:
        raise SettingsError(f"context {context}: {model} reads at most {loaded.max_context} tokens at once")
    return loaded
