"""Factory of readers for both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from actscope.engines.local.names import directory_of
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
    trust_remote_code: bool = False,
) -> Reader:
    """Open a reader of a model.

    Args:
        engine: "hf" or "vllm".
        model: Hub id, local directory, GGUF file, `actscope/smollm2` or `actscope/builtin`.
        sites: A selection such as "layers.2.resid_post", "first,middle,last" or a module's path.
        dtype: Element type of the rows; "auto" is the one in which the model computes.
        batch_tokens: Maximum number of tokens in a forward pass, padding included.
        context: Maximum length of a piece, in tokens.
        device: For "hf"; "auto" is a GPU if there is one. vLLM runs on the device for which it was installed.
        model_dtype: Element type in which the model computes.
        threads: Number of threads on a CPU; 0 is the engine's default.
        trust_remote_code: Run Python code from the checkpoint, for a model that the engine has no class for.

    Returns:
        The reader.

    Raises:
        SettingsError: An argument is invalid.
        SiteError: The model does not have a site.
        EngineError: The engine cannot run the model.
        MissingExtra: The engine is not installed.
    """
    if engine not in get_args(EngineName):
        raise SettingsError(f"engine {engine!r}: expected one of {', '.join(get_args(EngineName))}")
    if engine == "hf":
        loaded = _load(model, device, model_dtype, context, trust_remote_code)
        from actscope.extraction.hf import HfReader

        return HfReader(loaded, sites, dtype=dtype, batch_tokens=batch_tokens, threads=threads)
    if device != "auto":
        raise SettingsError(f"device {device!r}: vLLM runs on the device for which it was installed; omit device")
    from actscope.extraction.vllm.reader import VllmReader

    source = str(directory_of(model) or model)
    return VllmReader(
        source,
        sites,
        dtype=dtype,
        batch_tokens=batch_tokens,
        context=context,
        threads=threads,
        model_dtype=model_dtype,
        trust_remote_code=trust_remote_code,
    )


def _load(model: str, device: str, model_dtype: str, context: int, trust_remote_code: bool) -> LoadedModel:
    try:
        from actscope.engines.hf.loading import load
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", error.name or "transformers") from error
    loaded = load(model, device=device, dtype=model_dtype, trust_remote_code=trust_remote_code)
    if context > loaded.max_context:
        raise SettingsError(f"context {context}: {model} reads at most {loaded.max_context} tokens at once")
    return loaded
