"""Opening a reader of either engine."""

from __future__ import annotations

from typing import Literal, get_args

from actscope.engines.reading.batching import BATCH_TOKENS
from actscope.engines.reading.contract import Reader
from actscope.errors import MissingExtra, SettingsError

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

    dtype: of the rows; "auto" is what the model computes in. context: the longest piece that will be read. batch_tokens: tokens
    of one forward. device, model_dtype and threads are for "hf"; vLLM has settings of its own. Raises SettingsError,
    SiteError, EngineError, and MissingExtra for an engine that is not installed.
    """
    if engine == "hf":
        return _open_hf(model, sites, dtype, batch_tokens, context, device, model_dtype, threads)
    if engine != "vllm":
        raise SettingsError(f"engine {engine!r}: expected one of {', '.join(get_args(EngineName))}")
    if (device, model_dtype, threads) != ("auto", "auto", 0):
        raise SettingsError("device, model_dtype and threads are for the hf engine: vLLM has settings of its own")
    return _open_vllm(model, sites, dtype, batch_tokens, context)


def _open_hf(
    model: str, sites: str, dtype: str, batch_tokens: int, context: int, device: str, model_dtype: str, threads: int
) -> Reader:
    try:
        from actscope.engines.hf.loading import load
        from actscope.engines.reading.hf import HfReader
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", error.name or "transformers") from error
    loaded = load(model, device=device, dtype=model_dtype)
    if context > loaded.max_context:
        raise SettingsError(f"context {context}: {model} reads at most {loaded.max_context} tokens at once")
    return HfReader(loaded, sites, dtype=dtype, batch_tokens=batch_tokens, threads=threads)


def _open_vllm(model: str, sites: str, dtype: str, batch_tokens: int, context: int) -> Reader:
    from importlib import import_module

    reader: Reader = import_module("actscope.engines.vllm.reader").VllmReader(
        model=model, sites=sites, dtype=dtype, batch_tokens=batch_tokens, context=context
    )
    return reader
