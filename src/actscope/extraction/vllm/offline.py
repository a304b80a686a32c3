"""Offline vLLM engine in this process, for extraction: no server, no sidecar, one pass per call of `step`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from actscope.engines.vllm.settings import KEY, VllmSettings
from actscope.engines.vllm.sidecar_protocol import SidecarStart
from actscope.errors import ActscopeError, EngineError, MissingExtra, SettingsError
from actscope.extraction.hf import length_edge
from actscope.sites import items_of

if TYPE_CHECKING:
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.config import ModelConfig

#: The engine core runs in this process, so that only the pieces determine which of them share a pass. A sequence may be one
#: token longer than the model's context, as the token sampled after it is never computed; lengths are checked before.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
#: Engine arguments that set the KV cache's memory. Without one of them it is sized for extraction.
_MEMORY = ("kv_cache_memory_bytes", "gpu_memory_utilization")
#: Size of the KV cache in passes: its blocks have up to 128 tokens, and most pieces end within one.
_PASSES_IN_CACHE = 4
_SET_NUM_THREADS = torch.set_num_threads
#: Default maximum number of sequences in a pass.
_SEQUENCES = 256


class OfflineEngine:
    """A vLLM engine that publishes raw rows of `sites` in shared memory: `add` requests, call `step`, read the rings.

    A process can hold one engine at a time.

    Attributes:
        starts: Description, with the rings' names, of each pipeline stage that publishes rows.
        vocabulary: Number of tokens in the model's vocabulary.
        ranks: Number of workers that share the model.
    """

    def __init__(self, model: str, sites: str, dtype: str, batch_tokens: int, context: int, more: Mapping[str, object]):
        """Start the engine.

        Args:
            model: Hub id or local directory.
            sites: A selection of sites.
            dtype: Element type in which the model computes, or "auto".
            batch_tokens: Maximum number of tokens in a pass.
            context: Maximum number of tokens in a request.
            more: Further engine arguments of vLLM.

        Raises:
            EngineError: vLLM cannot run the model, or the plugin is not active in it.
            SettingsError: `more` contains an argument that the reader sets.
            SiteError: The model does not have a site.
        """
        items_of(sites)
        arguments = _arguments(model, sites, dtype, batch_tokens, context, more)
        try:
            with _environment():
                self._engine = _start(arguments, context)
        except ActscopeError:
            _clean_up()
            raise
        except Exception as error:  # boundary to vLLM, which may raise anything
            _clean_up()
            raise EngineError(f"vLLM cannot run {model}: {type(error).__name__}: {error}") from error
        self._params = self._greedy()
        self.vocabulary = int(self._engine.model_config.get_vocab_size())
        self.ranks = int(self._engine.vllm_config.parallel_config.world_size)
        try:
            self.starts = self._find_starts()
        except BaseException:
            self.close()
            raise

    def add(self, request: str, token_ids: list[int]) -> str:
        """Queue a request and return the id that labels its rows."""
        found: str = self._engine.add_request(request, {"type": "token", "prompt_token_ids": token_ids}, self._params)
        return found

    def step(self) -> list[str]:
        """Run one pass. Returns the ids, as passed to `add`, of the requests that have been read completely."""
        return [output.request_id for output in self._engine.step() if output.finished]

    def busy(self) -> bool:
        """Return whether requests are unfinished."""
        found: bool = self._engine.has_unfinished_requests()
        return found

    def forget(self, requests: list[str]) -> None:
        """Abort those of the requests that are unfinished, given the ids returned by `add`."""
        self._engine.abort_request(requests, internal=True)

    def close(self) -> None:
        """Shut the engine down, with its worker processes and its shared memory. Idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
            del engine
            _clean_up()

    def _greedy(self) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)

    def _find_starts(self) -> list[SidecarStart]:
        found = [start for start in self._engine.collective_rpc(_start_of) if start is not None and start.rows_ring]
        if not found:
            raise EngineError(
                "actscope's plugin is not active in this vLLM, so there are no rows to read; the log above has the reason. "
                "ACTSCOPE_DISABLE must not be set, VLLM_PLUGINS must be unset or contain actscope, and actscope must be "
                "installed in vLLM's environment"
            )
        return sorted(found, key=lambda start: start.part)


def _start_of(worker: Any) -> SidecarStart | None:
    """Run in each worker: return the description of its rings, or None if this worker does not publish rows."""
    session = getattr(worker.worker, "_actscope_session", None)
    return None if session is None else session.start


def _clean_up() -> None:
    """Clean up after a vLLM that ended or failed to start: process groups, garbage, and on CPUs torch's patched function."""
    torch.set_num_threads = _SET_NUM_THREADS
    with contextlib.suppress(ImportError):
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def _arguments(
    model: str, sites: str, dtype: str, batch_tokens: int, context: int, more: Mapping[str, object]
) -> dict[str, object]:
    ours = {
        "model": model,
        "dtype": dtype,
        "max_model_len": context,
        "max_num_batched_tokens": batch_tokens,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "additional_config": {KEY: msgspec.to_builtins(_settings(sites, batch_tokens))},
    }
    taken = sorted(set(ours) & set(more))
    if taken:
        raise SettingsError(f"engine arguments for reading: {', '.join(taken)} cannot be given, the reader sets them")
    return {"max_num_seqs": min(_SEQUENCES, batch_tokens), **ours, **more}


def _settings(sites: str, batch_tokens: int) -> VllmSettings:
    """Return complete settings, so that none comes from the environment: raw rows of `sites`, no scores, no limit of memory."""
    return VllmSettings(
        sites="", row_sites=sites, width=1, ring_rows=max(256, batch_tokens), sidecar=False, buffer_gb=1e6
    )


def _start(arguments: dict[str, object], context: int) -> LLMEngine:
    try:
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext
    except ImportError as error:
        raise MissingExtra("vllm", "vLLM") from error
    args = EngineArgs(**arguments)
    model = _checked_model(args)
    args.max_model_len = context + 1
    if not any(name in arguments for name in _MEMORY):
        args.kv_cache_memory_bytes = _cache_bytes(model, args)
    return LLMEngine.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)


def _checked_model(args: EngineArgs) -> ModelConfig:
    """Return vLLM's ModelConfig. Raises ValueError, by vLLM, if the requested context exceeds the model's.

    LongRoPE models use other rotary frequencies beyond some length, and vLLM chooses them by the maximum length that it allows.
    A context for which the one extra token would cross that length raises SettingsError.
    """
    del os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"]
    model = args.create_model_config()
    os.environ.update(_ENVIRONMENT)
    if args.max_model_len == length_edge(model.hf_text_config):
        raise SettingsError(
            f"context {args.max_model_len}: vLLM needs room for one more token, and this model uses other rotary frequencies "
            f"beyond this length: set it to {args.max_model_len - 1}"
        )
    return model


def _cache_bytes(model: ModelConfig, args: EngineArgs) -> int:
    """Return the size of a KV cache of a few passes in each rank, in bytes. A text that has been read needs none."""
    heads = max(1, model.get_total_num_kv_heads() // args.tensor_parallel_size)
    per_token = 2 * heads * model.get_head_size() * model.get_total_num_hidden_layers() * model.dtype.itemsize
    return int(per_token * _PASSES_IN_CACHE * max(args.max_num_batched_tokens, args.max_model_len))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set vLLM's environment variables while the engine starts, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
