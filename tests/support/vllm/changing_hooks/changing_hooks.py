"""A vLLM plugin that adds to the stream, as plugins for steering do: by a hook from before ours and by one from after it.

Found by its entry point, and only by processes that have this folder on PYTHONPATH.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

#: Blocks whose output is changed: by a hook that is registered before actscope's, and by one that is registered after it.
BEFORE, AFTER = 0, 1
ADDED = 0.25


def register() -> None:
    """Once per process, as vLLM loads plugins more than once."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from actscope.engines.vllm import plugin

    if hasattr(CPUModelRunner.load_model, "_changes"):
        return
    plugin.register()  # first, so that its wrapper of the worker lies inside ours, and runs before it
    load_model, init_device = CPUModelRunner.load_model, WorkerWrapperBase.init_device

    @wraps(load_model)
    def load_then_change(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        self.get_model().model.layers[BEFORE].register_forward_hook(_add)

    @wraps(init_device)
    def init_then_wrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = init_device(self, *args, **kwargs)
        load = self.worker.load_model

        def load_model(*args: Any, **kwargs: Any) -> Any:
            loaded = load(*args, **kwargs)
            self.worker.model_runner.get_model().model.layers[AFTER].register_forward_hook(_add)
            return loaded

        self.worker.load_model = load_model
        return result

    load_then_change._changes = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model, WorkerWrapperBase.init_device = load_then_change, init_then_wrap


def _add(module: Any, args: Any, output: Any) -> Any:
    hidden, residual = output
    return hidden + ADDED, residual
