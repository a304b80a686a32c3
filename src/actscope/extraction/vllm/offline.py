"""vLLM in this process, for reading only: no server, no sidecar, passes that are asked for one by one."""

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

#: In this process, so that which pieces share a pass depends on nothing but the pieces; and a sequence may be one token longer
#: than the model's context, since the token that is sampled behind it is never computed. Lengths are checked before that.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
#: Engine arguments that say how much memory the KV cache gets. Without any it is sized for what reading needs.
_MEMORY = ("kv_cache_memory_bytes", "gpu_memory_utilization")
#: The KV cache holds the tokens of so many passes: its blocks are of up to 128 tokens, and most pieces end within one.
_PASSES_IN_CACHE = 4
_SET_NUM_THREADS = torch.set_num_threads
#: Sequences in a pass, at most, where the caller says nothing.
_SEQUENCES = 256


class OfflineEngine:
    """An engine whose raw rows of `sites` go to shared memory: `add` requests, `step`, and read them there.

    `starts` says where, for each pipeline stage that has any; `vocabulary` is how many tokens there are,
    `ranks` how many workers share the model. A process can hold one engine at a time.
    """

    def __init__(self, model: str, sites: str, dtype: str, batch_tokens: int, context: int, more: Mapping[str, object]):
        """Raises EngineError where vLLM cannot run the model or the plugin does not watch it; SettingsError for `more`
        engine arguments that are not the caller's to choose, SiteError for `sites` that the model does not have.
        """
        items_of(sites)
        arguments = _arguments(model, sites, dtype, batch_tokens, context, more)
        try:
            with _environment():
                self._engine = _start(arguments, context)
        except ActscopeError:
            _clean_up()
            raise
        except Exception as error:  # the boundary to vLLM: whatever it does not like
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
        """Queue a text to be read; the id by which its rows are labelled."""
        found: str = self._engine.add_request(request, {"type": "token", "prompt_token_ids": token_ids}, self._params)
        return found

    def step(self) -> list[str]:
        """One pass; the ids, as given to `add`, of the texts that have been read to their ends."""
        return [output.request_id for output in self._engine.step() if output.finished]

    def busy(self) -> bool:
        """Whether there is something left to do."""
        found: bool = self._engine.has_unfinished_requests()
        return found

    def forget(self, requests: list[str]) -> None:
        """Give up these texts, by their ids of labels, as far as they have not been read."""
        self._engine.abort_request(requests, internal=True)

    def close(self) -> None:
        """End it, with its worker processes and its shared memory. A second call does nothing."""
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
                "this vLLM is not watched, so there are no rows to read; the log above says why. ACTSCOPE_DISABLE must not be "
                "set, VLLM_PLUGINS must be absent or name actscope, and actscope must be installed beside vLLM"
            )
        return sorted(found, key=lambda start: start.part)


def _start_of(worker: Any) -> SidecarStart | None:
    """In each worker: where its rows lie; None where another rank publishes them, or nobody does."""
    session = getattr(worker.worker, "_actscope_session", None)
    return None if session is None else session.start


def _clean_up() -> None:
    """What a vLLM that has ended, or never began, leaves in its process: groups, the garbage, a function of torch's on CPUs."""
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
    """All of them, so that none comes from the environment: raw rows of `sites`, no scores, as much memory as there is."""
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
    """vLLM's ModelConfig; raises ValueError where the model's context is shorter than what is to be read.

    Some models (LongRoPE) turn otherwise from some length on, and vLLM turns all texts by the longest that may come.
    """
    del os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"]
    model = args.create_model_config()
    os.environ.update(_ENVIRONMENT)
    if args.max_model_len == length_edge(model.hf_text_config):
        raise SettingsError(
            f"context {args.max_model_len}: vLLM needs room for one token more, and reads this model otherwise "
            f"from there on: make it {args.max_model_len - 1}"
        )
    return model


def _cache_bytes(model: ModelConfig, args: EngineArgs) -> int:
    """Keys and values of a few passes in each rank: a text that has been read needs none any more."""
    heads = max(1, model.get_total_num_kv_heads() // args.tensor_parallel_size)
    per_token = 2 * heads * model.get_head_size() * model.get_total_num_hidden_layers() * model.dtype.itemsize
    return int(per_token * _PASSES_IN_CACHE * max(args.max_num_batched_tokens, args.max_model_len))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """vLLM's variables while the engine starts; afterwards they are as they were."""
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
