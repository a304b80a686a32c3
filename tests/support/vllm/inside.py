"""What tests do inside an engine's process, by `Offline.call("support.vllm.inside:<name>")`: look at the plugin, or break it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch


def session(llm: Any) -> Any:
    """The plugin's session in this process; None where it does not watch."""
    return getattr(llm.llm_engine.model_executor.driver_worker.worker, "_actscope_session", None)


def watched(llm: Any) -> bool:
    return session(llm) is not None


def wrapped(llm: Any) -> list[str]:
    """What of vLLM's is not as vLLM wrote it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.request import Request
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    owned = [(EngineArgs, "create_engine_config"), (Request, "get_skip_reading_prefix_cache")]
    owned += [(WorkerWrapperBase, "init_device"), (WorkerWrapperBase, "shutdown")]
    found = [name for owner, name in owned if hasattr(getattr(owner, name), "_actscope")]
    worker = llm.llm_engine.model_executor.driver_worker.worker
    for owner in (worker, worker.model_runner):
        found += [
            name for name, value in vars(owner).items() if getattr(value, "__module__", "").startswith("actscope")
        ]
    hooks = [m for m in worker.model_runner.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return found + [type(module).__name__ for module in hooks]


def counts(llm: Any) -> dict[str, int]:
    """The plugin's account of all rows, and how often it failed around a pass."""
    found = session(llm)
    return {**asdict(found.counts()), "faults": found._observer.faults, "deaths": found._sidecar.deaths}


def sidecar(llm: Any) -> int:
    """The pid of the sidecar that runs now."""
    pid: int = session(llm)._sidecar.pid
    return pid


def rows_ring(llm: Any) -> dict[str, int]:
    """What the writer of the ring of raw rows has taken and dropped."""
    return asdict(session(llm)._rings.rows.stats())


def _index(llm: Any, site: str) -> int:
    return [one.name for one in session(llm)._taps.sites].index(site)


def silence(llm: Any, site: str) -> None:
    """Take one hook off, as if the compiler had skipped its module."""
    session(llm)._taps._hooks[_index(llm, site)].remove()


def break_tap(llm: Any, site: str) -> None:
    """Point a probe of one site to a column that does not exist: its op fails from now on."""
    session(llm)._taps.buffers.columns[_index(llm, site)] = 1 << 40


def reload(llm: Any, path: str, directly: bool = False) -> None:
    """Give the running model the weights of another directory: by vLLM's own method, or norms only, as worker extensions do."""
    if not directly:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        return
    from safetensors.torch import load_file

    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    weights = load_file(f"{path}/model.safetensors")  # matrices have another layout by now, on a CPU
    model.load_weights((name, weight) for name, weight in weights.items() if "norm" in name)


def change_norms(llm: Any) -> None:
    """Make the input norms double their residual: the stream that they read is no sum of the block's two tensors any more."""
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    for layer in model.model.layers[1:]:
        norm = layer.input_layernorm
        forward = norm.forward
        norm.forward = lambda x, residual=None, f=forward: f(x) if residual is None else f(x, 2 * residual)
    model.load_weights(())


def compiled(llm: Any) -> dict[str, int]:
    """How often this process traced a graph, and found it compiled already, or not."""
    found = torch._dynamo.utils.counters
    inductor = found["inductor"]
    return {
        "graphs": found["stats"]["unique_graphs"],
        "hits": inductor["fxgraph_cache_hit"],
        "misses": inductor["fxgraph_cache_miss"],
    }
