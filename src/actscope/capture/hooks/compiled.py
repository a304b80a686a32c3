"""Compiled models: code that `torch.compile` made before a hook was registered never calls it, and gives no sign of that.

While a capture runs, compiled code is bypassed in the whole process (the stance "force_eager" of torch.compiler): models compiled
before or during the capture run eagerly, with all hooks, and run their compiled code again afterwards. Nothing is recompiled.
Compiling anew with the hooks would take minutes, fail under `fullgraph=True`, and leave the hooks in the code for good.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import nn


class _Stance(Protocol):
    """The object that `torch.compiler.set_stance` returns: leaving it restores the stance before."""

    def __exit__(self, kind: None, error: None, trace: None, /) -> None: ...


class EagerStance:
    """Bypasses compiled code while at least one holder needs it. Thread-safe."""

    def __init__(self) -> None:
        self._holders = 0
        self._stance: _Stance | None = None
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Run all models of the process eagerly until `release`."""
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._stance = torch.compiler.set_stance("force_eager")

    def release(self) -> None:
        """Undo one `hold`. The last one restores the stance that was set before the first."""
        with self._lock:
            self._holders -= 1
            if not self._holders and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


#: The only instance in this process.
EAGER = EagerStance()


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the names of the modules that `torch.compile` or `module.compile()` has wrapped; "" is the model itself."""
    return [name for name, module in model.named_modules() if _is_compiled(module)]


def _is_compiled(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return (
        isinstance(module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module)
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(forward, "_torchdynamo_orig_callable", None) is not None
    )
