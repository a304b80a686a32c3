"""Adapters for vLLM's two model runners: what a pass contained, read from each, and facts of the served model and its KV cache.

Only this module and the constructors in `session.py` and `model_taps.py` use runner attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actscope.engines.vllm.sidecar_protocol import ServedModel
from actscope.errors import EngineError
from actscope.taps.text_model import text_config

log = logging.getLogger("actscope.vllm")


@dataclass(slots=True)
class PassBatch:
    """The real tokens of one forward pass; padding follows `n_tokens`.

    Rows `starts[i]` to `starts[i + 1]` of everything the pass wrote belong to `requests[i]`. `positions` int64, `token_ids` int32
    and `slots` int64 (KV slot of each token) are device buffers of at least `n_tokens` elements. The next pass overwrites them.
    """

    requests: list[str]
    starts: np.ndarray  # int [n + 1]
    n_tokens: int
    positions: Tensor
    token_ids: Tensor
    slots: Tensor | None
    drafts: np.ndarray | None = None  # int [n]: speculative tokens at the end of each request's rows
    rejected: Tensor | None = None  # int [n], on the device: how many drafts were rejected, known after sampling


class Runner(Protocol):
    """Adapter interface: `batch` describes a pass; `watch_rejections` reports rejected drafts after sampling."""

    name: str

    def batch(self, scheduled: Any) -> PassBatch:
        """Return the tokens of the pass that vLLM's SchedulerOutput `scheduled` describes."""

    def watch_rejections(self, waiting: Callable[[], PassBatch | None]) -> None:
        """Set `rejected` of the pass that `waiting` returns, after each sampling."""


#: Attributes that an adapter needs. They are checked before anything is attached.
_V1_NEEDS = (
    "execute_model", "sample_tokens", "input_batch", "query_start_loc", "positions", "input_ids",
    "_update_states_after_model_execute",
)  # fmt: skip
_V2_NEEDS = ("execute_model", "sample_tokens", "sample", "input_buffers", "req_states", "execute_model_state")


def adapt(runner: Any) -> Runner:
    """Return the adapter for a model runner. Raises EngineError, naming what is missing, for an unknown runner."""
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(runner).__mro__]
    if "vllm.v1.worker.gpu.model_runner.GPUModelRunner" in names:
        _need(runner, _V2_NEEDS)
        return V2Runner(runner)
    if "vllm.v1.worker.gpu_model_runner.GPUModelRunner" in names:
        _need(runner, _V1_NEEDS)
        return V1Runner(runner)
    raise EngineError(f"expected vLLM's V1 or V2 model runner, found {names[0]}")


def _need(runner: Any, attributes: Sequence[str]) -> None:
    absent = [name for name in attributes if not hasattr(runner, name)]
    if absent:
        raise EngineError(f"{type(runner).__name__}: expected attributes {', '.join(absent)}, which are not there")


def full_attention_layer(runner: Any) -> tuple[int, str] | None:
    """Return (group, layer) of full attention in the KV cache, or None.

    Blocks of full attention are never dropped while their request lives.
    """
    config = getattr(runner, "kv_cache_config", None)
    for index, group in enumerate(config.kv_cache_groups if config is not None else ()):
        if type(group.kv_cache_spec).__name__ in ("FullAttentionSpec", "MLAAttentionSpec"):
            return index, group.layer_names[0]
    return None


@dataclass(frozen=True, slots=True)
class KvPool:
    """KV cache blocks of full attention: `n_blocks` blocks of `block_size` slots in KV group `group`."""

    group: int
    n_blocks: int
    block_size: int


def kv_pool(runner: Any) -> KvPool | None:
    """Return the blocks that the prefix cache shares between prompts; None if it is off or has no full attention.

    Also None, with a warning, if a KV connector fills blocks: nobody here sees the rows that they came from.
    """
    place, config = full_attention_layer(runner), runner.vllm_config
    if place is None or not config.cache_config.enable_prefix_caching:
        return None
    if config.kv_transfer_config is not None:
        log.warning(
            "a KV connector brings keys and values that were computed elsewhere: scores of cached prompts are off"
        )
        return None
    kv = runner.kv_cache_config
    return KvPool(place[0], kv.num_blocks, kv.kv_cache_groups[place[0]].kv_cache_spec.block_size)


def served_model(runner: Any, name: str) -> ServedModel:
    """Return the facts of the model that a runner (`name`: V1 or V2) serves."""
    model, hf = runner.vllm_config.model_config, text_config(runner.model)
    served = model.served_model_name
    return ServedModel(
        served=served if isinstance(served, str) else served[0],
        source=str(model.model),
        commit=str(getattr(model.hf_config, "_commit_hash", None) or ""),
        tokenizer=str(model.tokenizer or model.model),
        device=str(runner.device),
        dtype=str(model.dtype).removeprefix("torch."),
        n_layers=int(hf.num_hidden_layers),
        d_model=int(hf.hidden_size),
        max_context=int(model.max_model_len),
        vllm=_vllm_version(),
        runner=name,
    )


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


class V1Runner:
    """Adapter for `vllm.v1.worker.gpu_model_runner`: its batch stays valid until the next `execute_model`."""

    name = "V1"

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def batch(self, scheduled: Any) -> PassBatch:
        """Return the tokens of the latest pass, read from the input batch and the token buffers of the runner."""
        runner = self._runner
        requests = list(runner.input_batch.req_ids)
        starts = np.array(runner.query_start_loc.np[: len(requests) + 1])
        drafts = scheduled.scheduled_spec_decode_tokens
        return PassBatch(
            requests,
            starts,
            int(starts[-1]),
            _device(runner.positions),
            _device(runner.input_ids),
            self._slots(),
            np.minimum([len(drafts.get(r, ())) for r in requests], np.diff(starts) - 1) if drafts else None,
        )

    def watch_rejections(self, waiting: Callable[[], PassBatch | None]) -> None:
        """After sampling, set `rejected` of the waiting pass to its number of rejected drafts; on device."""
        original = self._runner._update_states_after_model_execute

        def update(output_token_ids: Tensor, scheduled: Any) -> None:
            batch = waiting()
            if batch is not None and batch.drafts is not None:
                drafts = torch.from_numpy(batch.drafts).to(output_token_ids.device, non_blocking=True)
                valid = (output_token_ids != -1).sum(dim=1)
                batch.rejected = torch.where(drafts > 0, drafts + 1 - valid, 0).clamp_(min=0)
            original(output_token_ids, scheduled)

        self._runner._update_states_after_model_execute = update

    def _slots(self) -> Tensor | None:
        place = full_attention_layer(self._runner)
        if place is None:
            return None
        found: Tensor = self._runner.input_batch.block_table[place[0]].slot_mapping.gpu
        return found


class V2Runner:
    """Adapter for `vllm.v1.worker.gpu.model_runner`: reads the state that `execute_model` leaves for `sample_tokens`."""

    name = "V2"

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def batch(self, scheduled: Any) -> PassBatch:
        """Return the tokens of the latest pass, read from the runner's `execute_model_state`.

        Raises:
            EngineError: `execute_model` left no state.
        """
        state = self._runner.execute_model_state
        if state is None:
            raise EngineError("execute_model left no state behind, although tokens were scheduled")
        batch = state.input_batch
        n = batch.num_reqs
        place = full_attention_layer(self._runner)
        slots = (state.slot_mappings_by_layer or {}).get(place[1]) if place else None
        return PassBatch(
            list(batch.req_ids),
            np.array(batch.query_start_loc_np[: n + 1]),
            batch.num_tokens,
            batch.positions,
            batch.input_ids,
            slots,
            batch.num_draft_tokens_per_req if batch.num_draft_tokens else None,
        )

    def watch_rejections(self, waiting: Callable[[], PassBatch | None]) -> None:
        """After sampling, set `rejected` of the waiting pass to its number of rejected drafts; on device."""
        original = self._runner.sample

        def sample(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            batch = waiting()
            if batch is not None:
                batch.rejected = result[2]
            return result

        self._runner.sample = sample


def _device(buffer: Any) -> Tensor:
    """Return the device tensor of a tensor, or of a host-device pair of buffers."""
    found: Tensor = buffer if isinstance(buffer, torch.Tensor) else buffer.gpu
    return found
